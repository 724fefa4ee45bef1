"""F3. Which chunks leave the POOL when room is needed.

Law: ``victims`` returns enough for all of ``need``, or None and changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from llmaas.records import ChunkKey


class EvictionPolicy(Protocol):
    """Keeps an order over the chunks in the POOL."""

    def touch(self, key: ChunkKey, now: float) -> None:
        """The chunk arrived in the POOL, or was used."""

    def forget(self, key: ChunkKey) -> None:
        """The chunk left the POOL; unknown keys are ignored."""

    def victims(self, need: int, gain: Callable[[ChunkKey], int]) -> list[ChunkKey] | None:
        """Chunks whose bytes sum to at least ``need``, first to leave first.

        ``gain`` gives the bytes that evicting a chunk frees now, 0 if it may not be evicted.
        """


class Lru:
    """Least recently used first. Cost per call: the victims, plus the unevictable ones before them."""

    def __init__(self) -> None:
        self._order: OrderedDict[ChunkKey, None] = OrderedDict()

    def touch(self, key: ChunkKey, now: float) -> None:
        self._order[key] = None
        self._order.move_to_end(key)

    def forget(self, key: ChunkKey) -> None:
        self._order.pop(key, None)

    def victims(self, need: int, gain: Callable[[ChunkKey], int]) -> list[ChunkKey] | None:
        chosen: list[ChunkKey] = []
        for key in self._order:
            if need <= 0:
                break
            freed = gain(key)
            if freed:
                chosen.append(key)
                need -= freed
        return chosen if need <= 0 else None


EVICTION: dict[str, Callable[[], EvictionPolicy]] = {"lru": Lru}
