"""What an eviction policy is asked: which chunks leave the POOL when room is needed.

Law: ``victims`` returns enough for all of ``need``, or None and changes nothing. Work per call does not grow with idle
chunks: it is the victims, plus the unevictable ones before them, times at most the logarithm of the contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

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

    def victims(self, need: int, gain: Gain, candidate: ContextId | None = None) -> list[ChunkKey] | None:
        """Chunks whose bytes sum to at least ``need``, first to leave first.

        ``candidate``: the room is for a chunk of this context, which has a copy on DISK. Then None also if
        what would have to leave is expected back before it.
        """


def take(order: Iterable[ChunkKey], need: int, gain: Gain) -> tuple[list[ChunkKey], int]:
    """Chunks in order until ``need`` is met, and what of it is not."""
    chosen: list[ChunkKey] = []
    for key in order:
        if need <= 0:
            break
        if freed := gain(key):
            chosen.append(key)
            need -= freed
    return chosen, need
