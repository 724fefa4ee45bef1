"""The default: evict the context that is expected back last.

Law: as in ``base``.
"""

from __future__ import annotations

from llmaas.policies.eviction.by_context import ByContext
from llmaas.policies.eviction.rankings import ContextHeap, IntervalRanking, LrfuRanking, Ranking
from llmaas.records import ContextId


class NextUse(ByContext):
    """The context that is expected back last leaves first, and a candidate that is expected later still stays outside.

    Where every chunk has a copy on DISK, bringing it back costs by its bytes, as keeping it does. So size cancels,
    and what is left of "chance of return x cost to bring back / bytes" is the chance.

    What tells the next return best depends on how apps are used, so two rankings compete, each on a ghost of the POOL
    that holds names only; the one whose ghost missed less of late decides.
    """

    _HALF_LIFE = 4.0
    _FORGET = 0.99
    """Of a ghost's misses, after each further return."""

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
