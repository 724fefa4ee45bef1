"""How a context moves to another node while it goes on: what is sent, what is computed there, and when to hand over.

Law: pure. What the link takes is learned (``LinearCost``): ``q + bytes / b`` (the estimator of ServerlessLLM, arXiv
2401.14351, section 5.3). What computing takes, the target has learned, and says.

In rounds, as there: a round brings what the source had at its beginning; meanwhile the source goes on, and the next
round brings what it has added. Two things differ.

* Tokens go first and always: they are what makes the target safe. Coded chunks follow, the last ones first, as long as
  the link brings the rest of them sooner than the target computes what they hold. So it is about as fast as the faster
  of the two ways, also where nothing is known of the link before. Full chunks never change: they are sent once.
* Rounds end when one has not made the pause shorter, not at a fixed number of tokens. ServerlessLLM's
  repository stops at 20; on a CPU, where decoding is about 0.4 times as fast as computing a prompt, that took four to
  seven rounds.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from llmaas.frozen import frozen
from llmaas.policies.linear_cost import LinearCost

LEAST_GAIN = 0.95
"""A round was worth its work if the other node lacks less than this part of what it lacked before."""
MOST_ROUNDS = 16
"""A source that adds tokens as fast as they are brought is handed over all the same."""
HELD_UP = 1.3
"""A round that leaves more than so many times what the one before it left, after rounds that made it less, was held up
by something else."""
FEW = 2
"""Tokens that make no pause: a step takes about as long with them as with one."""


@frozen
class LinkCosts:
    """What a link has been seen to take. Give what is seen to ``sent``."""

    link: LinearCost
    """Seconds of (sends, bytes)."""

    def sent(self, nbytes: int, seconds: float) -> None:
        self.link.observe(1.0, nbytes, seconds)

    def send_s(self, nbytes: int) -> float:
        return self.link(1.0, nbytes) if nbytes else 0.0


class Next(enum.Enum):
    """What a migration does next."""

    ROUND = "round"
    """Bring what is there now, while the source goes on."""
    HAND_OVER = "hand over"
    """Stop the source, bring the rest, and let the target go on."""


def sends_more(costs: LinkCosts, nbytes: int, compute_s: float) -> bool:
    """Whether the next chunk is sent. ``nbytes``: of all that are left; ``compute_s``: what the target takes to compute
    all tokens that they hold.

    >>> costs = LinkCosts(LinearCost(1e-3, 1e-7))
    >>> sends_more(costs, 10_000_000, 3.0), sends_more(costs, 50_000_000, 3.0)
    (True, False)
    """
    return nbytes > 0 and costs.send_s(nbytes) <= compute_s


def next_step(left: Sequence[int]) -> Next:
    """Whether one more round is worth it. ``left``: how many tokens the target lacked after each round so far.

    The pause is what the target takes for the tokens that it lacks. A round makes it shorter as long as the source adds
    fewer meanwhile than the round brings. That is seen, not foreseen: what a round takes depends on who else computes,
    and an estimate that took all of it for the overhead of a round ended the rounds before they had begun.

    A round that leaves far more than the one before it, which had made the pause shorter, was held up by something
    else: one more round is made, as the pause would be as long.

    >>> [next_step(left).name for left in ([36], [36, 30], [36, 30, 30], [36, 2], [36, 20, 60], [36, 20, 60, 21])]
    ['ROUND', 'ROUND', 'HAND_OVER', 'HAND_OVER', 'ROUND', 'HAND_OVER']
    """
    if len(left) >= MOST_ROUNDS or left[-1] <= FEW:
        return Next.HAND_OVER
    gained = len(left) == 1 or left[-1] < LEAST_GAIN * min(left[:-1])
    was_held_up = len(left) > 2 and left[-2] == min(left[:-1]) < LEAST_GAIN * left[-3] and left[-1] > HELD_UP * left[-2]
    return Next.ROUND if gained or was_held_up else Next.HAND_OVER
