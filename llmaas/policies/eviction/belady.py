"""What no eviction policy can beat: bounds for replays, which know the trace's future or have no budget.

Law: only for replays. ``unbounded`` needs no policy, only a POOL that holds everything.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from llmaas.policies.eviction.by_context import ByContext
from llmaas.policies.eviction.rankings import ContextHeap
from llmaas.records import ContextId


class ClairvoyantRanking:
    """A ranking by the time of the next return, from a list of all of them (seconds, ascending)."""

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
    """The context that comes back last leaves first, and what comes back later than all that is there stays outside.

    Belady's MIN with bypass, on chunks: least bytes from DISK, since a part of a context helps by its share. A bound on
    bytes, not on seconds: a device's latency is paid per switch.
    """

    def __init__(self, returns: Mapping[ContextId, Sequence[float]]) -> None:
        """``returns``: when each context is called and not in CELLS; eviction from the POOL does not change that."""
        self._future = ClairvoyantRanking(returns)
        super().__init__(ContextHeap(self._future))

    def returned(self, context: ContextId, now: float) -> None:
        self._future.now = now
        super().returned(context, now)
