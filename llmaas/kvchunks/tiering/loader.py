"""Loads chunks into the engine's cells: from the POOL or from DISK, decoded ahead of the engine.

Law: it decides nothing, and puts chunks into cells in ascending position order. A chunk that cannot be read or decoded
is reported, never raised. Loads run at normal priority, since a request waits for them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

from llmaas.engine.thread import EngineThread
from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, CodedChunk
from llmaas.kvchunks.tiering.disk_reader import DiskReader
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import ChunkSource, LoadChunks, StopLoad
from llmaas.planner.events import Loaded
from llmaas.records import CHUNK_TOKENS, ChunkKey, Tier

log = logging.getLogger(__name__)
T = TypeVar("T")

Keep = Callable[[ChunkKey, CodedChunk], None]
Held = Mapping[ChunkKey, CodedChunk | None]
Done = Callable[[Loaded], None]
_Decoded = tuple[KvSlab, CodedChunk | None]
"""The chunk for the engine, and the coded bytes that the POOL is to keep."""

_AHEAD_BYTES = 6 << 20
_AHEAD_LEAST, _AHEAD_MOST = 2, 4
"""Chunks decoded ahead of the engine: as many of them in f16. A load has one or two more in buffers."""
_READ_BYTES = 2 << 20
"""Of one read: a device reads in large runs. A load holds about three times as much, since one piece is being decoded
while the next one is read and decrypted."""
_FIRST_READ, _READ_CHUNKS = 4, 32
"""Chunks of a load's first read, whose size is not known yet, and of each later one at most."""


class Stopped(Exception):
    """The load has been stopped: nobody wants it any more."""


class Loader:
    """Carries out ``LoadChunks``, two loads at a time. ``keep`` takes chunks from DISK that the POOL is to hold."""

    def __init__(self, engine: EngineThread, codec: Codec, reader: DiskReader, keep: Keep, *, workers: int) -> None:
        self._engine, self._codec, self._reader, self._keep = engine, codec, reader, keep
        plain = CHUNK_TOKENS * codec.geometry.token_bytes
        self._ahead = min(_AHEAD_MOST, max(_AHEAD_LEAST, _AHEAD_BYTES // plain))
        self._running: dict[int, tuple[Future[None], Done]] = {}
        """For each unanswered load: its stop signal (a future that runs once the load has begun) and its ``done``."""
        self._loaders = Workers(2, "load")
        self._readers = Workers(2, "read")
        self._decoders = Workers(workers, "decode")

    def close(self) -> None:
        """End the threads. What they are doing now is finished; what waits is not begun."""
        for executor in (self._loaders, self._readers, self._decoders):
            executor.shutdown(wait=True, cancel_futures=True)

    def load(self, action: LoadChunks, held: Held, done: Done) -> None:
        """Begin a load and return at once. ``held`` has the coded bytes of the chunks in the POOL.

        ``done`` is called on a worker thread.
        """
        stop: Future[None] = Future()
        self._running[action.load] = stop, done
        self._loaders.submit(self._load, action, held, stop, done)

    def stop(self, action: StopLoad) -> None:
        """Have the load answered soon, without waiting for the disk. Does nothing once it is answered."""
        stop, done = self._running.pop(action.load, (None, None))
        if stop is None or done is None:
            return
        if stop.cancel():  # it has not begun, and will not
            done(Loaded(action.load, 0))
        else:
            stop.set_result(None)

    def _load(self, action: LoadChunks, held: Held, stop: Future[None], done: Done) -> None:
        if not stop.set_running_or_notify_cancel():
            return
        try:
            event = self._load_in_order(action, held, stop)
        except Exception:
            log.exception("load %d failed", action.load)
            event = Loaded(action.load, 0, ())
        self._running.pop(action.load, None)
        done(event)

    def _load_in_order(self, action: LoadChunks, held: Held, stop: Future[None]) -> Loaded:
        decoding: deque[Future[_Decoded]] = deque()
        loading: list[Future[None]] = []
        copies: list[CodedChunk | None] = []
        damaged: tuple[ChunkKey, ...] = ()
        with closing(self._payloads(action.chunks, held, stop)) as payloads:
            for i, source in enumerate(action.chunks):
                try:
                    self._begin_decoding(payloads, decoding, 1 if i else self._ahead)
                    slab, copy = _unless_stopped(stop, decoding.popleft())
                except Stopped:
                    break
                except ChunkDamaged as e:
                    log.warning("chunk %s is damaged and will be recomputed: %s", source.key.hex(), e.message)
                    damaged = (source.key,)
                    break
                except Exception:  # such as no memory: what is loaded so far counts
                    log.exception("chunk %s cannot be loaded now", source.key.hex())
                    break
                copies.append(copy)
                loading.append(self._engine.submit_urgent(self._engine.engine.load, action.seq, source.start, slab))
                del slab  # its buffer is used again as soon as the engine has it
                if i >= self._ahead and loading[i - self._ahead].exception() is not None:
                    break
        for pending in decoding:
            pending.cancel()
        n_loaded = _leading_successes(loading)
        for source, copy in zip(action.chunks[:n_loaded], copies, strict=False):
            if copy is not None:
                self._keep(source.key, copy)
        return Loaded(action.load, n_loaded, damaged if n_loaded == len(loading) else ())

    def _payloads(
        self, sources: Sequence[ChunkSource], held: Held, stop: Future[None]
    ) -> Generator[tuple[ChunkSource, CodedChunk | None], None, None]:
        """Each source with its coded bytes, in order. DISK is read one piece ahead of what is being decoded."""
        piece, at = sources[:_FIRST_READ], _FIRST_READ
        reading = self._readers.submit(self._read, piece)
        try:
            while piece:
                read = _unless_stopped(stop, reading)
                following = sources[at : at + _n_to_read(read)]
                at += len(following)
                reading = self._readers.submit(self._read, following)
                for source in piece:
                    # Let go of what is being decoded: the rest of the piece is as much again.
                    yield source, read.pop(source.key, None) if source.tier is Tier.DISK else held[source.key]
                piece = following
        finally:
            reading.cancel()  # if it has not begun: nobody will take its result

    def _read(self, sources: Sequence[ChunkSource]) -> dict[ChunkKey, CodedChunk | None]:
        keys = [s.key for s in sources if s.tier is Tier.DISK]
        return dict(zip(keys, self._reader.get(keys), strict=True))

    def _begin_decoding(
        self, payloads: Iterator[tuple[ChunkSource, CodedChunk | None]], decoding: deque[Future[_Decoded]], n: int
    ) -> None:
        for source, payload in islice(payloads, n):
            decoding.append(self._decoders.submit(self._decode, source, payload))

    def _decode(self, source: ChunkSource, payload: CodedChunk | None) -> _Decoded:
        """Raises ChunkDamaged."""
        if payload is None:
            raise ChunkDamaged("its bytes are missing")
        slab = self._engine.engine.blank(source.stop - source.start)
        self._codec.decode(payload, source.key, slab)
        # A view would keep the read buffer of all the chunks alive, so it is copied; bytes are kept as they are.
        return slab, bytes(payload) if source.keep else None


def _n_to_read(read: Mapping[ChunkKey, CodedChunk | None]) -> int:
    """How many chunks to read next, going by the size of those that were read just now."""
    sizes = [len(payload) for payload in read.values() if payload is not None]
    return min(_READ_CHUNKS, max(1, _READ_BYTES * len(sizes) // sum(sizes))) if sizes else _READ_CHUNKS


def _unless_stopped(stop: Future[None], work: Future[T]) -> T:
    """The result of ``work``. Raises Stopped as soon as ``stop`` is done."""
    if not work.done():
        either: list[Future[Any]] = [stop, work]
        wait(either, return_when=FIRST_COMPLETED)
    if stop.done():
        raise Stopped
    return work.result()


def _leading_successes(loading: Sequence[Future[None]]) -> int:
    """How many loads succeeded before the first that failed; those behind it must have failed too."""
    for i, future in enumerate(loading):
        if (error := future.exception()) is not None:
            log.error("the engine could not load a chunk: %r", error)
            return i
    return len(loading)
