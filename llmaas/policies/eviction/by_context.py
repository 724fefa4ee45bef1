"""Eviction by context: whole contexts are ranked, not single chunks.

Law: as in ``base``; a ranking says who goes first, this says what of it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort

from llmaas.policies.eviction.base import Arrival, Gain, take
from llmaas.policies.eviction.rankings import ContextHeap, rank
from llmaas.records import ChunkKey, ContextId


class ByContext:
    """Chunks leave by context, in the order of one of several rankings, and head first inside a context.

    All chunks of a context come back together, so the order is one of contexts. The head goes first, as in Pensieve
    (arXiv 2312.05516): it is the cheapest to recompute, and what is recomputed must be a prefix.
    """

    by_use = False

    def __init__(self, *orders: ContextHeap) -> None:
        self._orders = orders
        """The contexts with chunks in the POOL, by each ranking."""
        self._chunks: dict[ContextId, list[tuple[int, ChunkKey]]] = {}
        self._home: dict[ChunkKey, tuple[ContextId, int]] = {}
        self._gone: set[ContextId] = set()
        """Contexts that are no more, but still have chunks here: others share them, or they are on their way."""
        self._tick = 0
        """Returns so far."""

    def _best(self) -> ContextHeap:
        """The order that counts now."""
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
        passed: list[ContextId] = []
        while need > 0 and (context := order.pop(self._tick)) is not None:
            passed.append(context)
            if rank(order.ranking, context, self._tick) <= bar:
                break
            more, need = take((key for _, key in self._chunks[context]), need, gain)
            chosen += more
        for context in reversed(passed):
            order.add(context)
        return chosen if need <= 0 else None
