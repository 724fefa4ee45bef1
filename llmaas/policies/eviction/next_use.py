"""The default policy ("returns"): evict the context whose next use is expected to be farthest away.

Law: as in ``base``.
"""

from __future__ import annotations

from llmaas.policies.eviction.by_context import ByContext
from llmaas.policies.eviction.context_heap import ContextHeap
from llmaas.policies.eviction.rankings import IntervalRanking, LrfuRanking, Ranking
from llmaas.records import ContextId


class NextUse(ByContext):
    """An estimate of Belady's MIN: predict when each context returns, evict the one that is expected back last.

    A candidate that is expected later than every context in the POOL gets no room there (bypass).

    The general rule is to keep what has the greatest "chance of return x cost to bring back / bytes". Every chunk here
    has a copy on DISK, so bringing it back costs in proportion to its bytes, as keeping it does. Size cancels, and only
    the chance of return is left.

    Which ranking predicts the next return best depends on how apps are used. So two rankings compete, as the experts of
    adaptive caches do (ARC, LeCaR): each has a ghost cache, which is as large as the POOL in contexts but holds names
    only. The ranking whose ghost had fewer misses lately decides.
    """

    _HALF_LIFE = 4.0
    """Of a return in the LRFU ranking, in returns of any context."""
    _FORGET = 0.99
    """A ghost's misses are multiplied by this at each return, so that old ones fade."""

    def __init__(self) -> None:
        rankings: tuple[Ranking, ...] = (LrfuRanking(self._HALF_LIFE), IntervalRanking())
        super().__init__(*(ContextHeap(ranking) for ranking in rankings))
        self._ghosts = [ContextHeap(ranking) for ranking in rankings]
        self._misses = [0.0 for _ in rankings]

    def _best(self) -> ContextHeap:
        return self._orders[self._misses.index(min(self._misses))]

    def returned(self, context: ContextId, now: float) -> None:
        super().returned(context, now)
        for i, ghost in enumerate(self._ghosts):
            self._misses[i] = self._FORGET * self._misses[i] + (context not in ghost)
            ghost.add(context)
            while len(ghost) > max(1, len(self._chunks)):
                ghost.pop(self._tick)

    def closed(self, context: ContextId) -> None:
        for ghost in self._ghosts:
            ghost.discard(context)
        super().closed(context)
