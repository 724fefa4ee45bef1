"""How a context moves to another node while it goes on: what is sent, what is computed there, and when to hand over.

Law: pure. What the link takes is learned (``LinearCost``): ``q + bytes / b`` (the estimator of ServerlessLLM, arXiv
2401.14351, section 5.3). What computing takes, the target has learned, and says.

In rounds, as there: a round brings what the source had at its beginning; meanwhile the source goes on, and the next
round brings what it has added. Two things differ.

* Tokens go first and always: they are what makes the target safe. Coded chunks follow, the last ones first. Unless the
  link is much faster, the target computes the first ones meanwhile, until both meet (as in Cake, arXiv 2410.03065). So
  it is faster than either way alone, also where nothing is known of the link before. Full chunks never change: they are
  sent once.
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
LEAST_SHARE = 0.25
"""Of the time that computing takes alone. Where a link takes less, little is gained by computing meanwhile, which takes
time from the chunks that come, and which they wait for at the end."""
FEW = 2
"""Tokens that make no pause: a step takes about as long with them as with one."""


@frozen
class LinkCosts:
    """What a link has been seen to take. Give what is seen to ``sent``."""

    link: LinearCost
    """Seconds of (sends, bytes)."""

    def sent(self, nbytes: int, seconds: float) -> None:
        self.link.observe(1.0, nbytes, seconds)

    def send_s(self, nbytes: float, n_sends: float = 1.0) -> float:
        return self.link(n_sends, nbytes) if nbytes else 0.0


class Next(enum.Enum):
    """What a migration does next."""

    ROUND = "round"
    """Bring what is there now, while the source goes on."""
    HAND_OVER = "hand over"
    """Stop the source, bring the rest, and let the target go on."""


def computes_meanwhile(link_s: float, compute_s: float) -> bool:
    """Whether the target is to compute the first chunks while the last ones come. ``link_s``: what the link takes for
    all that are left; ``compute_s``: what the target takes to compute them.

    >>> computes_meanwhile(10.0, 30.0), computes_meanwhile(1.0, 30.0)
    (True, False)
    """
    return link_s > LEAST_SHARE * compute_s


def sends_more(link_s: float, compute_s: float) -> bool:
    """Whether the next chunk is sent to a target that computes the first ones meanwhile. ``link_s``: what the link
    takes for this chunk, and for what is on the way; ``compute_s``: what the target takes until it has computed this
    chunk, too.

    >>> sends_more(0.6, 3.0), sends_more(0.6, 0.3)
    (True, False)
    """
    return link_s < compute_s


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
