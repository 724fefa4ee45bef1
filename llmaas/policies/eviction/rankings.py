"""Rankings of contexts by when they are expected to return.

Law: pure. A rank is fixed until a known moment, and from then on grows with time, at the same pace for all contexts.
So a heap can hold the order without being renewed (``context_heap``). Time is counted in ticks: one tick is one return
of any context.
"""

from __future__ import annotations

import math
from typing import Protocol

from llmaas.records import ContextId


class Ranking(Protocol):
    """Predicts returns from earlier ones. The greater the rank of a context, the sooner it is evicted."""

    def first_seen(self, context: ContextId, tick: int) -> None:
        """The context has chunks now. Nothing changes if it is known already."""

    def returned(self, context: ContextId, tick: int) -> None:
        """The context was called while some of its KV was not in CELLS."""

    def closed(self, context: ContextId) -> None:
        """The context was deleted. Unknown contexts are ignored."""

    def settled(self, context: ContextId) -> float:
        """The rank until the context is overdue."""

    def overdue(self, context: ContextId) -> tuple[float, int] | None:
        """(tick from which the context is overdue, tick of its last use); None if it never becomes overdue.

        The rank of an overdue context is the time since its last use.
        """


class LrfuRanking:
    """How often a context returned lately: the weight of each return halves every ``half_life`` ticks.

    This is LRFU (Lee et al., IEEE Transactions on Computers 50:12, 2001). All weights fall at the same pace, so the
    order of contexts does not change between returns. What is stored is the logarithm of each sum as of tick 0.
    """

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._score: dict[ContextId, float] = {}
        """Base-2 logarithm of the sum of 2^(tick / half_life) over the returns."""

    def first_seen(self, context: ContextId, tick: int) -> None:
        self._score.setdefault(context, tick / self._half_life)

    def returned(self, context: ContextId, tick: int) -> None:
        now = tick / self._half_life
        before = self._score.get(context, -math.inf)
        self._score[context] = now + math.log2(1 + 2 ** (before - now))

    def closed(self, context: ContextId) -> None:
        self._score.pop(context, None)

    def settled(self, context: ContextId) -> float:
        return -self._score[context]

    def overdue(self, context: ContextId) -> None:
        return None


class IntervalRanking:
    """How long a context stays away: a moving mean of its intervals, or the present interval once that is longer.

    A context that has not returned yet is overdue from the start. Where all contexts take turns, all intervals are
    equal: then no context makes room for another, and a part of them stays in the POOL. That is the best possible.
    """

    _NEWEST = 0.5
    """Weight of the newest interval in the mean."""

    def __init__(self) -> None:
        self._last: dict[ContextId, int] = {}
        self._mean: dict[ContextId, float] = {}

    def first_seen(self, context: ContextId, tick: int) -> None:
        self._last.setdefault(context, tick)

    def returned(self, context: ContextId, tick: int) -> None:
        if context in self._last:
            away = float(tick - self._last[context])
            mean = self._mean.get(context, away)
            self._mean[context] = mean + self._NEWEST * (away - mean)
        self._last[context] = tick

    def closed(self, context: ContextId) -> None:
        self._last.pop(context, None)
        self._mean.pop(context, None)

    def settled(self, context: ContextId) -> float:
        return self._mean.get(context, 0.0)

    def overdue(self, context: ContextId) -> tuple[float, int]:
        """As in ``Ranking``. Raises KeyError for an unknown context."""
        last = self._last[context]
        return last + self._mean.get(context, 0.0), last


def rank(ranking: Ranking, context: ContextId, tick: int) -> float:
    """The rank of a context at ``tick``."""
    if (due := ranking.overdue(context)) is not None and due[0] < tick:
        return float(tick - due[1])
    return ranking.settled(context)
