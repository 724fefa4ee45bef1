"""Eviction by context: contexts are ranked, and the chunks of the worst one leave first.

Law: as in ``base``. A ``Ranking`` says which context goes first; this module says which of its chunks.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort

from llmaas.policies.eviction.base import Arrival, Gain, take
from llmaas.policies.eviction.context_heap import ContextHeap
from llmaas.policies.eviction.rankings import rank
from llmaas.records import ChunkKey, ContextId


class ByContext:
    """Evicts contexts in the order of a ranking, and the head of a context before its tail.

    All chunks of a context come back together, so the order is one of contexts and not of chunks. The head goes first,
    as in Pensieve (arXiv 2312.05516): it is the cheapest part to recompute, and what is recomputed must be a prefix.

    A subclass may keep several rankings and choose between them (``_best``).
    """

    by_use = False

    def __init__(self, *orders: ContextHeap) -> None:
        self._orders = orders
        """The contexts that have chunks in the POOL, once for each ranking."""
        self._chunks: dict[ContextId, list[tuple[int, ChunkKey]]] = {}
        """The chunks of each context in the POOL, as (index, key) in ascending order."""
        self._home: dict[ChunkKey, tuple[ContextId, int]] = {}
        """The context and the index under which each chunk is listed."""
        self._gone: set[ContextId] = set()
        """Deleted contexts with chunks that are still in the POOL: other contexts share them, or they are on their way
        out. Their rankings are forgotten when the last chunk has left."""
        self._tick = 0
        """Returns so far, of all contexts: the clock of the rankings."""

    def _best(self) -> ContextHeap:
        """The order that decides now."""
        return self._orders[0]

    def returned(self, context: ContextId, now: float) -> None:
        self._tick += 1
        for order in self._orders:
            order.ranking.returned(context, self._tick)
            if context in order:
                order.add(context)

    def add(self, key: ChunkKey, chunk: Arrival, now: float) -> None:
        self._home[key] = chunk.context, chunk.index
        chunks = self._chunks.get(chunk.context)
        if chunks is None:
            chunks = self._chunks[chunk.context] = []
            for order in self._orders:
                order.ranking.first_seen(chunk.context, self._tick)
                order.add(chunk.context)
        insort(chunks, (chunk.index, key))

    def touch(self, key: ChunkKey, now: float) -> None:
        pass

    def forget(self, key: ChunkKey) -> None:
        if (home := self._home.pop(key, None)) is None:
            return
        context, index = home
        chunks = self._chunks[context]
        del chunks[bisect_left(chunks, (index, key))]
        if not chunks:
            del self._chunks[context]
            for order in self._orders:
                order.discard(context)
            if context in self._gone:
                self.closed(context)

    def closed(self, context: ContextId) -> None:
        if context in self._chunks:
            self._gone.add(context)
            return
        self._gone.discard(context)
        for order in self._orders:
            order.ranking.closed(context)

    def victims(self, need: int, gain: Gain, candidate: ContextId | None = None) -> list[ChunkKey] | None:
        order = self._best()
        bar = -math.inf
        if candidate is not None:
            order.ranking.first_seen(candidate, self._tick)
            bar = rank(order.ranking, candidate, self._tick)
        chosen: list[ChunkKey] = []
        popped: list[ContextId] = []
        while need > 0 and (context := order.pop(self._tick)) is not None:
            popped.append(context)
            if rank(order.ranking, context, self._tick) <= bar:
                break
            more, need = take((key for _, key in self._chunks[context]), need, gain)
            chosen += more
        for context in reversed(popped):
            order.add(context)
        return chosen if need <= 0 else None
