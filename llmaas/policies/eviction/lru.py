"""Plain LRU over chunks.

Law: as in ``base``; constant work per use of a chunk.
"""

from __future__ import annotations

from collections import OrderedDict

from llmaas.policies.eviction.base import Arrival, Gain, take
from llmaas.records import ChunkKey, ContextId


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

    def victims(self, need: int, gain: Gain, candidate: ContextId | None = None) -> list[ChunkKey] | None:
        chosen, short = take(self._order, need, gain)
        return chosen if short <= 0 else None
