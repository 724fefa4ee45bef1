"""Chunks that the store has held since the start, and that no context is known to contain yet.

Law: a chunk is here or in the planner's books, never in both: the event that first names its key takes it along.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from llmaas.planner.events import ChunksFound, ContextChanged, ContextOpened, Event, FoundChunk
from llmaas.records import ChunkKey


class UnclaimedChunks:
    """Chunks by key, until contexts that are looked at claim them. For one event loop."""

    def __init__(self) -> None:
        self._chunks: dict[ChunkKey, FoundChunk] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, key: object) -> bool:
        return key in self._chunks

    def add(self, chunks: Iterable[FoundChunk]) -> None:
        self._chunks.update((chunk[0], chunk) for chunk in chunks)

    def discard(self, keys: Iterable[ChunkKey]) -> None:
        """The store has them no more."""
        for key in keys:
            self._chunks.pop(key, None)

    def claimed(self, event: Event) -> Event:
        """The event with those chunks of its keys that are here, and no longer then."""
        if isinstance(event, ContextOpened | ContextChanged):
            found = tuple(self._chunks.pop(key) for key in event.keys if key in self._chunks)
            if found:
                return replace(event, found=found)
        return event

    def rest(self) -> ChunksFound:
        """All that are left, when every context has been looked at; they are here no longer then."""
        rest, self._chunks = tuple(self._chunks.values()), {}
        return ChunksFound(rest)
