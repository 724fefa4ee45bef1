"""What every eviction policy offers: it says which chunks leave the POOL when room is needed.

Law: pure. ``victims`` proposes chunks for all of ``need``, or None, and changes nothing. Its work does not grow with
the number of idle chunks. It grows with the victims, plus the chunks before them that may not be evicted, times at most
the logarithm of the number of contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from llmaas.frozen import frozen
from llmaas.records import ChunkKey, ContextId

Gain = Callable[[ChunkKey], int]
"""Bytes that evicting a chunk frees now; 0 if it may not be evicted."""


@frozen
class Arrival:
    """A chunk whose coded copy has just come into the POOL.

    ``context`` is the context that held the chunk last, ``index`` the chunk's number in it. ``nbytes`` is the size of
    the coded copy, which covers ``tokens`` tokens.
    """

    context: ContextId
    index: int
    tokens: int
    nbytes: int


class EvictionPolicy(Protocol):
    """Keeps an order over the chunks in the POOL. ``now`` is in seconds."""

    @property
    def by_use(self) -> bool:
        """Whether the order depends on ``touch``; if not, callers may leave out the calls."""

    def returned(self, context: ContextId, now: float) -> None:
        """A context was called while some of its KV was not in CELLS."""

    def add(self, key: ChunkKey, chunk: Arrival, now: float) -> None:
        """The chunk came into the POOL."""

    def touch(self, key: ChunkKey, now: float) -> None:
        """A chunk of the POOL was loaded, or has just left CELLS."""

    def forget(self, key: ChunkKey) -> None:
        """The chunk left the POOL. Unknown keys are ignored."""

    def closed(self, context: ContextId) -> None:
        """The context was deleted. Unknown contexts are ignored."""

    def victims(self, need: int, gain: Gain, candidate: ContextId | None = None) -> list[ChunkKey] | None:
        """Chunks that free at least ``need`` bytes together, the first to evict first; None if there are not enough.

        With ``candidate``, the room is for a chunk of that context which also has a copy on DISK. The answer is then
        None, too, if the room is better kept for what would have to leave.
        """


def take(order: Iterable[ChunkKey], need: int, gain: Gain) -> tuple[list[ChunkKey], int]:
    """Choose chunks in ``order`` until they free ``need`` bytes.

    Returns the chunks and the bytes that are still missing (0 or less: enough).
    """
    chosen: list[ChunkKey] = []
    for key in order:
        if need <= 0:
            break
        if freed := gain(key):
            chosen.append(key)
            need -= freed
    return chosen, need
