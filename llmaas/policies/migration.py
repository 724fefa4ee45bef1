"""How a context moves to another node while it goes on: what is sent, what is computed there, and when to hand over.

Law: pure. Two costs of a link and a target are learned (``LinearCost``): bytes over the link take ``q + bytes / b``,
and bringing tokens takes ``a x tokens + b`` (the estimators of ServerlessLLM, arXiv 2401.14351, section 5.3; there
``a (t_in + t_out) + b``: both kinds of tokens are computed at the target).

In rounds, as there: a round brings what the source had at its beginning; meanwhile the source goes on, and the next
round brings what it has added. Two things differ.

* Tokens go first and always: they are what makes the target safe. Coded chunks follow, the last ones first, as long as
  the link brings the rest of them sooner than the target computes what they hold. So it is about as fast as the faster
  of the two ways, also where nothing is known of the link before. Full chunks never change: they are sent once.
* Rounds end when the next one would not make the pause shorter, not at a fixed number of tokens. ServerlessLLM's
  repository stops at 20; on a CPU, where decoding is about 0.4 times as fast as computing a prompt, that took four to
  seven rounds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from llmaas.policies.linear_cost import LinearCost

LEAST_GAIN = 0.8
"""A round is worth its work if the pause behind it is expected to be shorter than this part of what it is now."""
MOST_ROUNDS = 16
"""A source that adds tokens as fast as they are brought is handed over all the same."""


@dataclass(frozen=True, slots=True)
class LinkCosts:
    """What a link and a target have been seen to take. Give what is seen to ``sent`` and ``brought``."""

    link: LinearCost
    """Seconds of (sends, bytes)."""
    rounds: LinearCost
    """Seconds of (rounds, tokens)."""

    def sent(self, nbytes: int, seconds: float) -> None:
        self.link.observe(1.0, nbytes, seconds)

    def brought(self, n_tokens: int, seconds: float) -> None:
        self.rounds.observe(1.0, n_tokens, seconds)

    def send_s(self, nbytes: int) -> float:
        return self.link(1.0, nbytes) if nbytes else 0.0

    def bring_s(self, n_tokens: int) -> float:
        return self.rounds(1.0, n_tokens) if n_tokens else 0.0


class Next(enum.Enum):
    """What a migration does next."""

    ROUND = "round"
    """Bring what is there now, while the source goes on."""
    HAND_OVER = "hand over"
    """Stop the source, bring the rest, and let the target go on."""


def sends_more(costs: LinkCosts, nbytes: int, compute_s: float) -> bool:
    """Whether the next chunk is sent. ``nbytes``: of all that are left; ``compute_s``: what the target takes to compute
    all tokens that they hold.

    >>> costs = LinkCosts(LinearCost(1e-3, 1e-7), LinearCost(1e-3, 1e-3))
    >>> sends_more(costs, 10_000_000, 3.0), sends_more(costs, 50_000_000, 3.0)
    (True, False)
    """
    return nbytes > 0 and costs.send_s(nbytes) <= compute_s


def next_step(n_left: int, costs: LinkCosts, *, decode_s: float, n_rounds: int) -> Next:
    """Whether one more round is worth it. ``n_left``: tokens that the target lacks; ``decode_s``: seconds that the
    source takes for one more; 0 if it rests.

    The pause is what a hand-over takes now. After one more round it would be what the tokens take that the source adds
    meanwhile. A source that rests adds none: it is handed over at once.
    """
    if decode_s <= 0 or n_rounds >= MOST_ROUNDS:
        return Next.HAND_OVER
    pause_s = costs.bring_s(n_left)
    later_s = costs.bring_s(int(pause_s / decode_s))
    return Next.ROUND if later_s < LEAST_GAIN * pause_s else Next.HAND_OVER
