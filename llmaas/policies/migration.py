"""How a context moves to another node while it goes on: what is sent and what is computed there, and when to hand over.

Law: pure. Two costs of a link and a target are learned (``LinearCost``): bytes over the link take ``q + bytes / b``,
and computing takes ``a x tokens + b`` (the estimators of ServerlessLLM, arXiv 2401.14351, section 5.3; there
``a (t_in + t_out) + b``: both kinds of tokens are computed at the target).

In rounds, as there: a round brings what the source had at its beginning; meanwhile the source goes on, and the next
round brings what it has added. Two things differ.

* A round is split like a context that comes back from disk (``policies.split``): the target computes from the front
  while coded chunks arrive from the back, so the link is one more tier. Tokens go first and always: they are what makes
  the target safe. Full chunks never change, so they are sent in one round only.
* Rounds end when the next one would not make the pause shorter, not at a fixed number of tokens. ServerlessLLM's
  repository stops at 20; on a CPU, where decoding is about 0.4 times as fast as computing a prompt, that took four to
  seven rounds.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from llmaas.policies.linear_cost import LinearCost
from llmaas.policies.split import SPLIT, Hole
from llmaas.records import CHUNK_TOKENS, TOKEN_BYTES

LEAST_GAIN = 0.8
"""A round is worth its work if the pause behind it is expected to be shorter than this part of what it is now."""
MOST_ROUNDS = 16
"""A source that adds tokens as fast as they are brought is handed over all the same."""


@dataclass(frozen=True, slots=True)
class LinkCosts:
    """What a link and a target have been seen to take. Give what is seen to ``sent`` and ``computed``."""

    link: LinearCost
    """Seconds of (sends, bytes)."""
    compute: LinearCost
    """Seconds of (steps, tokens)."""

    def sent(self, nbytes: int, seconds: float) -> None:
        self.link.observe(1.0, nbytes, seconds)

    def computed(self, n_tokens: int, seconds: float) -> None:
        self.compute.observe(1.0, n_tokens, seconds)

    def send_s(self, nbytes: int) -> float:
        return self.link(1.0, nbytes) if nbytes else 0.0

    def compute_s(self, n_tokens: int) -> float:
        return self.compute(1.0, n_tokens) if n_tokens else 0.0


@dataclass(frozen=True, slots=True)
class ToMove:
    """What the target lacks: ``n_tokens`` behind what it has, of which whole chunks are stored as ``chunks`` says: the
    bytes of each, 0 for one that is not, which can only be computed."""

    n_tokens: int
    chunks: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.chunks) * CHUNK_TOKENS > self.n_tokens:
            raise ValueError(f"{len(self.chunks)} chunks are more than {self.n_tokens} tokens")


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The first ``n_computed`` tokens and those behind the chunks are computed at the target, ``n_sent`` chunks sent;
    all of it is expected to take ``seconds``."""

    n_computed: int
    n_sent: int
    seconds: float


class Next(enum.Enum):
    """What a migration does next."""

    ROUND = "round"
    """Bring what is there now, while the source goes on."""
    HAND_OVER = "hand over"
    """Stop the source, bring the rest, and let the target go on."""


def plan_round(move: ToMove, costs: LinkCosts, *, with_chunks: bool = True) -> RoundPlan:
    """The split of a round that ends first. Without ``with_chunks`` all is computed (another model's codec, say).

    >>> costs = LinkCosts(LinearCost(1e-3, 1e-8), LinearCost(1e-3, 1e-2))
    >>> plan_round(ToMove(640, [400_000] * 10), costs)
    RoundPlan(n_computed=0, n_sent=10, seconds=0.0410256)
    >>> slow = LinkCosts(LinearCost(1e-3, 1e-4), LinearCost(1e-3, 1e-3))
    >>> plan_round(ToMove(640, [400_000] * 10), slow).n_sent
    0
    """
    tail = move.n_tokens - len(move.chunks) * CHUNK_TOKENS
    fewest = max((i + 1 for i, nbytes in enumerate(move.chunks) if not nbytes), default=0)
    if not with_chunks:
        fewest = len(move.chunks)
    rest = move.chunks[fewest:]
    sizes = [0]
    for nbytes in reversed(rest):
        sizes.append(sizes[-1] + nbytes)
    n_all = TOKEN_BYTES * move.n_tokens
    compute = [costs.compute_s((fewest + n) * CHUNK_TOKENS) for n in range(len(rest) + 1)]
    hole = Hole(compute, [costs.send_s(n_all + nbytes) for nbytes in sizes], [0.0] * len(sizes))
    n = SPLIT["balanced"]().split(hole)
    n_sent = len(rest) - n
    seconds = max(compute[n], hole.read[n_sent]) + costs.compute_s(tail)
    return RoundPlan((fewest + n) * CHUNK_TOKENS + tail, n_sent, seconds)


def next_step(
    move: ToMove, costs: LinkCosts, *, decode_s: float, n_rounds: int, with_chunks: bool = True
) -> tuple[Next, RoundPlan]:
    """Whether one more round is worth it. ``decode_s``: seconds that the source takes for a token; 0 if it rests.

    The pause is what a hand-over takes now. After one more round it would be what the tokens take that the source adds
    meanwhile. A source that rests adds none: it is handed over at once, with everything in one round.
    """
    now = plan_round(move, costs, with_chunks=with_chunks)
    if decode_s <= 0 or n_rounds >= MOST_ROUNDS:
        return Next.HAND_OVER, now
    added = int(now.seconds / decode_s)
    later = plan_round(ToMove(added, ()), costs, with_chunks=with_chunks)
    return (Next.ROUND if later.seconds < LEAST_GAIN * now.seconds else Next.HAND_OVER), now
