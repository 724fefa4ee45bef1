"""Which chunks leave the POOL when room is needed.

Law: ``victims`` returns enough for all of ``need``, or None and changes nothing. Work per call does not grow with idle
chunks: it is the victims, plus the unevictable ones before them, times at most the logarithm of the contexts.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from llmaas.policies.rankings import ContextHeap, Frequency, Interval, Ranking, rank
from llmaas.records import ChunkKey, ContextId

Gain = Callable[[ChunkKey], int]
"""Bytes that evicting a chunk frees now, 0 if it may not be evicted."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A copy that is in the POOL from now on. Chunk ``index`` of ``context``, the last one that was seen to hold it."""

    context: ContextId
    index: int
    tokens: int
    nbytes: int


class EvictionPolicy(Protocol):
    """Keeps an order over the chunks in the POOL. ``by_use``: whether ``touch`` means anything to it."""

    @property
    def by_use(self) -> bool: ...

    def returned(self, context: ContextId, now: float) -> None:
        """A context is called and some of its KV is not in CELLS."""

    def add(self, key: ChunkKey, chunk: Arrival, now: float) -> None:
        """The chunk arrived in the POOL."""

    def touch(self, key: ChunkKey, now: float) -> None:
        """A chunk of the POOL was loaded, or has just left CELLS."""

    def forget(self, key: ChunkKey) -> None:
        """The chunk left the POOL; unknown keys are ignored."""

    def closed(self, context: ContextId) -> None:
        """The context is no more; unknown ones are ignored."""

    def victims(self, need: int, gain: Gain, visitor: ContextId | None = None) -> list[ChunkKey] | None:
        """Chunks whose bytes sum to at least ``need``, first to leave first.

        With ``visitor``, the room is for a chunk of that context which has a copy on DISK: None also if it deserves the
        room less than what would have to go.
        """


def _take(order: Iterable[ChunkKey], need: int, gain: Gain) -> tuple[list[ChunkKey], int]:
    """Chunks in order until ``need`` is met, and what of it is not."""
    chosen: list[ChunkKey] = []
    for key in order:
        if need <= 0:
            break
        if freed := gain(key):
            chosen.append(key)
            need -= freed
    return chosen, need


class Lru:
    """Least recently used first."""

    by_use = True

    def __init__(self) -> None:
        self._order: OrderedDict[ChunkKey, None] = OrderedDict()

    def returned(self, context: ContextId, now: float) -> None:
        pass

    def add(self, key: ChunkKey, chunk: Arrival, now: float) -> None:
        self._order[key] = None

    def touch(self, key: ChunkKey, now: float) -> None:
        self._order.move_to_end(key)

    def forget(self, key: ChunkKey) -> None:
        self._order.pop(key, None)

    def closed(self, context: ContextId) -> None:
        pass

    def victims(self, need: int, gain: Gain, visitor: ContextId | None = None) -> list[ChunkKey] | None:
        chosen, short = _take(self._order, need, gain)
        return chosen if short <= 0 else None


class Lctru:
    """LLMS' order (arXiv 2403.11805, section 3.4): sub-queues by compression, least compressed first, LRU inside each.

    A sub-queue holds one octave of bytes per token: 16, 8, 4 and 2 bits fall into different ones.
    """

    by_use = True

    def __init__(self) -> None:
        self._queues: dict[int, OrderedDict[ChunkKey, None]] = {}
        self._queue_of: dict[ChunkKey, int] = {}

    def returned(self, context: ContextId, now: float) -> None:
        pass

    def add(self, key: ChunkKey, chunk: Arrival, now: float) -> None:
        level = (chunk.nbytes // max(chunk.tokens, 1)).bit_length()
        self._queue_of[key] = level
        self._queues.setdefault(level, OrderedDict())[key] = None

    def touch(self, key: ChunkKey, now: float) -> None:
        self._queues[self._queue_of[key]].move_to_end(key)

    def forget(self, key: ChunkKey) -> None:
        if (level := self._queue_of.pop(key, None)) is not None:
            del self._queues[level][key]

    def closed(self, context: ContextId) -> None:
        pass

    def victims(self, need: int, gain: Gain, visitor: ContextId | None = None) -> list[ChunkKey] | None:
        order = (key for level in sorted(self._queues, reverse=True) for key in self._queues[level])
        chosen, short = _take(order, need, gain)
        return chosen if short <= 0 else None


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
                order.enter(context)

    def add(self, key: ChunkKey, chunk: Arrival, now: float) -> None:
        self._home[key] = chunk.context, chunk.index
        chunks = self._chunks.get(chunk.context)
        if chunks is None:
            chunks = self._chunks[chunk.context] = []
            for order in self._orders:
                order.ranking.met(chunk.context, self._tick)
                order.enter(chunk.context)
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
                order.leave(context)
            if context in self._gone:
                self.closed(context)

    def closed(self, context: ContextId) -> None:
        if context in self._chunks:
            self._gone.add(context)
            return
        self._gone.discard(context)
        for order in self._orders:
            order.ranking.closed(context)

    def victims(self, need: int, gain: Gain, visitor: ContextId | None = None) -> list[ChunkKey] | None:
        order = self._best()
        bar = -math.inf
        if visitor is not None:
            order.ranking.met(visitor, self._tick)
            bar = rank(order.ranking, visitor, self._tick)
        chosen: list[ChunkKey] = []
        passed: list[ContextId] = []
        while need > 0 and (context := order.pop(self._tick)) is not None:
            passed.append(context)
            if rank(order.ranking, context, self._tick) <= bar:
                break
            more, need = _take((key for _, key in self._chunks[context]), need, gain)
            chosen += more
        for context in reversed(passed):
            order.enter(context)
        return chosen if need <= 0 else None


class NextUse(ByContext):
    """The context that is expected back last leaves first, and a visitor that is expected later still stays outside.

    Where every chunk has a copy on DISK, bringing it back costs by its bytes, as keeping it does. So size cancels,
    and what is left of "chance of return x cost to bring back / bytes" is the chance.

    What tells the next return best depends on how apps are used, so two rankings compete, each on a ghost of the POOL
    that holds names only; the one whose ghost missed less of late decides.
    """

    _HALF_LIFE = 4.0
    _FORGET = 0.99
    """Of a ghost's misses, after each further return."""

    def __init__(self) -> None:
        rankings: tuple[Ranking, ...] = (Frequency(self._HALF_LIFE), Interval())
        super().__init__(*(ContextHeap(ranking) for ranking in rankings))
        self._ghosts = [ContextHeap(ranking) for ranking in rankings]
        self._misses = [0.0 for _ in rankings]

    def _best(self) -> ContextHeap:
        return self._orders[self._misses.index(min(self._misses))]

    def returned(self, context: ContextId, now: float) -> None:
        super().returned(context, now)
        for i, ghost in enumerate(self._ghosts):
            self._misses[i] = self._FORGET * self._misses[i] + (context not in ghost)
            ghost.enter(context)
            while len(ghost) > max(1, len(self._chunks)):
                ghost.pop(self._tick)

    def closed(self, context: ContextId) -> None:
        for ghost in self._ghosts:
            ghost.leave(context)
        super().closed(context)


EVICTION: dict[str, Callable[[], EvictionPolicy]] = {"lru": Lru, "lctru": Lctru, "returns": NextUse}

DEFAULT_EVICTION = "returns"
"""What docs/policies.md says why."""
