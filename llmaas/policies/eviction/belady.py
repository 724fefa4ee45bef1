"""Belady's MIN: the bound for replays, which know the future of their trace.

Law: only for replays; no service can know the future. (The other bound, a POOL that holds everything, needs no policy.)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from llmaas.policies.eviction.by_context import ByContext
from llmaas.policies.eviction.context_heap import ContextHeap
from llmaas.records import ContextId


class ClairvoyantRanking:
    """Ranks contexts by the true time of their next return. ``returns``: all of them, in seconds, ascending."""

    def __init__(self, returns: Mapping[ContextId, Sequence[float]]) -> None:
        self._returns = returns
        self.now = 0.0

    def first_seen(self, context: ContextId, tick: int) -> None:
        pass

    def returned(self, context: ContextId, tick: int) -> None:
        pass

    def closed(self, context: ContextId) -> None:
        pass

    def settled(self, context: ContextId) -> float:
        returns = self._returns.get(context, ())
        i = bisect_right(returns, self.now)
        return returns[i] if i < len(returns) else math.inf

    def overdue(self, context: ContextId) -> None:
        return None


class Belady(ByContext):
    """Evicts the context that returns last; a candidate that returns after all of the POOL gets no room.

    This is Belady's MIN with bypass (IBM Systems Journal 5:2, 1966), on chunks: it reads the fewest bytes from DISK,
    since a part of a context helps in proportion to its size. It bounds bytes, not seconds: the latency of a device is
    paid per switch.
    """

    def __init__(self, returns: Mapping[ContextId, Sequence[float]]) -> None:
        """``returns``: when each context is called while not in CELLS. Evictions from the POOL do not change that."""
        self._clairvoyant = ClairvoyantRanking(returns)
        super().__init__(ContextHeap(self._clairvoyant))

    def returned(self, context: ContextId, now: float) -> None:
        self._clairvoyant.now = now
        super().returned(context, now)
