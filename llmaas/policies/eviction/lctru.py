"""LCTRU: the eviction order of LLMS (arXiv 2403.11805, section 3.4), a baseline.

Law: as in ``base``. Each use of a chunk is constant work.
"""

from __future__ import annotations

from collections import OrderedDict

from llmaas.policies.eviction.base import Arrival, Gain, take
from llmaas.records import ChunkKey, ContextId


class Lctru:
    """One queue for each level of compression: the least compressed queue is evicted first, LRU inside each queue.

    A queue holds one octave of bytes per token, so chunks of 16, 8, 4 and 2 bits fall into different queues.
    """

    by_use = True

    def __init__(self) -> None:
        self._queues: dict[int, OrderedDict[ChunkKey, None]] = {}
        """By octave of bytes per token; inside a queue the least recently used chunk is first."""
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

    def victims(self, need: int, gain: Gain, candidate: ContextId | None = None) -> list[ChunkKey] | None:
        order = (key for level in sorted(self._queues, reverse=True) for key in self._queues[level])
        chosen, short = take(order, need, gain)
        return chosen if short <= 0 else None
