"""Reads coded chunks from the store, for loads into CELLS and for fetches into the POOL.

Law: it decides nothing. A chunk that cannot be read counts as missing; no error of the store gets out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from llmaas.errors import ChunkDamaged
from llmaas.kvchunks.codec.codec import Codec, CodedChunk, SoundChunk, check
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import ChunkSource, FetchChunks
from llmaas.planner.events import FAILED, ChunkOutcome, Fetched, Stored
from llmaas.records import ChunkKey

log = logging.getLogger(__name__)


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

    def by_place(self, sources: Sequence[ChunkSource]) -> list[ChunkSource]:
        """The sources in the order in which they lie on disk, as far as that is known now."""
        of_key = {source.key: source for source in sources}
        try:
            return [of_key[key] for key in self._store.by_place(list(of_key))]
        except Exception as e:
            log.warning("where %d chunks are is not known: %r", len(sources), e)
            return list(sources)

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
        if not (isinstance(owner, np.ndarray) and owner.base is None and owner.nbytes == payload.nbytes):
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
