"""Reads coded chunks from the store, for loads into CELLS and for fetches into the POOL.

Law: it decides nothing. A chunk that cannot be read counts as missing; no error of the store gets out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmaas.errors import ChunkDamaged
from llmaas.kvchunks.codec.codec import Codec, CodedChunk, SoundChunk, check
from llmaas.kvchunks.store.chunk_memory import OwnMemory
from llmaas.kvchunks.store.rows import Place, SealedChunk
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import ChunkSource, FetchChunks
from llmaas.planner.events import FAILED, ChunkOutcome, Fetched, Stored
from llmaas.records import ChunkKey

log = logging.getLogger(__name__)


class Located(NamedTuple):
    """A chunk to read, and where it is; None if that is not known."""

    source: ChunkSource
    place: Place | None


class UnopenedChunk:
    """A chunk that was read and is still encrypted. Whoever decodes it opens it: then its bytes are in that core's
    cache, and the thread that reads goes on reading.
    """

    __slots__ = ("_sealed", "_store")

    def __init__(self, store: Store, sealed: SealedChunk) -> None:
        self._store, self._sealed = store, sealed

    def open(self) -> CodedChunk | None:
        """The coded bytes, unchecked; None where they are missing. Raises MemoryError: then they may be there."""
        try:
            return self._store.open(self._sealed)
        except MemoryError:
            raise
        except Exception as e:
            log.warning("cannot open chunk %s: %r", self._sealed.place.key.hex(), e)
            return None


class DiskReader:
    """``keep`` takes the chunks that were fetched."""

    def __init__(self, store: Store, keep: Callable[[ChunkKey, CodedChunk], None]) -> None:
        self._store, self._keep = store, keep
        self._fetcher = Workers(1, "fetch")

    def close(self) -> None:
        """End the thread. The fetch that runs is finished; those that wait are not begun."""
        self._fetcher.shutdown(wait=True, cancel_futures=True)

    def get(self, keys: Sequence[ChunkKey]) -> Sequence[CodedChunk | None]:
        """The coded bytes of each key, unchecked; None where they are missing."""
        if not keys:
            return ()
        try:
            return self._store.get(keys)
        except Exception as e:
            log.warning("cannot read %d chunks: %r", len(keys), e)
            return [None] * len(keys)

    def locate(self, sources: Sequence[ChunkSource]) -> list[Located]:
        """The sources in the order in which they lie on disk, and then those of which that is not known."""
        if not sources:
            return []
        of_key = {source.key: source for source in sources}
        try:
            found = [Located(of_key.pop(place.key), place) for place in self._store.places(list(of_key))]
        except Exception as e:
            log.warning("where %d chunks are is not known: %r", len(sources), e)
            return [Located(source, None) for source in sources]
        return found + [Located(source, None) for source in of_key.values()]

    def read(self, located: Sequence[Located]) -> list[CodedChunk | UnopenedChunk | None]:
        """Each chunk, to be opened; those whose place is not known as ``get`` gives them. What the POOL is to keep
        goes past the page cache.
        """
        found = dict[ChunkKey, CodedChunk | UnopenedChunk | None]()
        nowhere = [source.key for source, place in located if place is None]
        found.update(zip(nowhere, self.get(nowhere), strict=True))
        once = all(source.keep for source, _ in located)
        try:
            for sealed in self._store.read([place for _, place in located if place is not None], once=once):
                found[sealed.place.key] = UnopenedChunk(self._store, sealed)
        except Exception as e:
            log.warning("cannot read %d chunks: %r", len(located) - len(nowhere), e)
        return [found.get(source.key) for source, _ in located]

    def fetch(self, action: FetchChunks, done: Callable[[Fetched], None]) -> None:
        """Begin to read chunks into RAM and return at once. Fetches are done one at a time, in order.

        ``done`` is called on the worker thread.
        """
        self._fetcher.submit(self._fetch, action, done)

    def _fetch(self, action: FetchChunks, done: Callable[[Fetched], None]) -> None:
        outcomes: list[ChunkOutcome] = [FAILED] * len(action.keys)
        try:
            for i, (key, read) in enumerate(zip(action.keys, self.get(action.keys), strict=True)):
                if (payload := _checked(key, read)) is not None:
                    self._keep(key, to_be_kept(payload))
                    outcomes[i] = Stored(len(payload))
        except Exception:
            log.exception("fetch %d failed; its chunks will be recomputed", action.fetch)
        done(Fetched(action.fetch, tuple(outcomes)))


def sound_chunk(codec: Codec, source: ChunkSource, payload: CodedChunk | None) -> SoundChunk:
    """The chunk, ready to be decoded. Raises ChunkDamaged."""
    if payload is None:
        raise ChunkDamaged("its bytes are missing")
    return codec.sound(payload, source.key, source.stop - source.start)


def to_be_kept(payload: CodedChunk) -> CodedChunk:
    """The coded bytes in memory of their own. A part of a read buffer, which keeps all of that alive, is copied."""
    if isinstance(payload, memoryview):
        owner = payload.obj
        if not (isinstance(owner, OwnMemory) and owner.nbytes == payload.nbytes):
            return bytes(payload)
    return payload


def _checked(key: ChunkKey, payload: CodedChunk | None) -> CodedChunk | None:
    """The coded bytes if they are sound; otherwise None, and a warning in the log."""
    try:
        if payload is None:
            raise ChunkDamaged("its bytes are missing")
        check(payload, key)
    except ChunkDamaged as e:
        log.warning("chunk %s is damaged and will be recomputed: %s", key.hex(), e.message)
        return None
    return payload
