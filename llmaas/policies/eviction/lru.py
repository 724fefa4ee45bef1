"""LRU over chunks: the least recently used chunk is evicted first.

Law: as in ``base``. Each use of a chunk is constant work.
"""

from __future__ import annotations

from collections import OrderedDict

from llmaas.policies.eviction.base import Arrival, Gain, take
from llmaas.records import ChunkKey, ContextId


class Lru:
    """Least recently used first.

    >>> lru, gain = Lru(), lambda key: 1000
    >>> for name in (b"old", b"new"):
    ...     lru.add(ChunkKey(name), Arrival(ContextId("c"), index=0, tokens=64, nbytes=1000), now=0.0)
    >>> lru.victims(800, gain)
    [b'old']
    >>> lru.touch(ChunkKey(b"old"), now=1.0)
    >>> lru.victims(800, gain)
    [b'new']
    >>> lru.victims(2001, gain) is None  # all of it, or nothing
    True
    """

    by_use = True

    def __init__(self) -> None:
        self._order: OrderedDict[ChunkKey, None] = OrderedDict()
        """All chunks in the POOL, the least recently used first."""

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

    def victims(self, need: int, gain: Gain, candidate: ContextId | None = None) -> list[ChunkKey] | None:
        chosen, short = take(self._order, need, gain)
        return chosen if short <= 0 else None
