"""The pool: carries out chunk actions with buffers, codec, store and worker threads.

Law: it decides nothing. It keeps the coded bytes of the POOL and moves chunks CELLS <-> POOL <-> DISK as the planner
says; its books (``nbytes``) must equal the ledger's. A chunk that cannot be read or decoded is reported, never raised.

Loads run at normal priority: someone waits for them. Saves and writes run on threads of low CPU priority.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from llmaas.clock import Clock
from llmaas.engine.thread import EngineThread, lower_cpu_priority
from llmaas.errors import ChunkDamaged
from llmaas.kvchunks.codec.codec import Codec, CodedChunk, check, sinks_at
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.disk_writer import DiskWriter
from llmaas.planner.actions import (
    ChunkSource,
    ChunkTarget,
    FetchChunks,
    LoadChunks,
    LowerChunks,
    PersistSensitivity,
    SaveChunks,
    StopLoad,
    StopWrite,
    WriteChunks,
)
from llmaas.planner.events import Fetched, Loaded, Lowered, Saved, Written
from llmaas.records import ChunkKey, KvSlab, Tier

log = logging.getLogger(__name__)
T = TypeVar("T")

_AHEAD = 4
"""Chunks decoded ahead of the engine: bounds the f16 buffers of one load to about six chunks."""
_MANY = 32
"""Chunks: so many are not freed on the event loop, which has not the time, but on a thread, so many at a time."""
_READ_CHUNKS = 16
"""Chunks of one read: several megabytes, so that a device reads in large runs, and memory for two of them suffices."""


class _Stopped(Exception):
    """Nobody wants the load any more."""


class Pool:
    """Coded chunks in RAM, and the threads that move them. ``load``, ``save``, ``write`` return at once."""

    def __init__(
        self,
        engine: EngineThread,
        codec: Codec,
        store: Store,
        *,
        workers: int = 2,
        write_rate: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._store = store
        self._bytes: dict[ChunkKey, CodedChunk] = {}
        self._stops: dict[int, tuple[Future[None], Callable[[Loaded], None]]] = {}
        """For each load that is not answered: what is done when nobody wants it, and runs from when it has begun."""
        self._loaders = ThreadPoolExecutor(2, "load")
        self._readers = ThreadPoolExecutor(2, "read")
        self._fetcher = ThreadPoolExecutor(1, "fetch")
        self._decoders = ThreadPoolExecutor(workers, "decode")
        self._savers = ThreadPoolExecutor(workers, "save", lower_cpu_priority)
        self._writer = DiskWriter(store, write_rate, clock)
        self._freer = ThreadPoolExecutor(1, "free")

    @property
    def nbytes(self) -> int:
        """Bytes of coded chunks held in RAM."""
        return sum(len(p) for p in list(self._bytes.values()))

    def close(self) -> None:
        """End the threads; what they do now, and every write and discard that was asked for, is finished first."""
        for executor in (self._loaders, self._readers, self._fetcher, self._decoders, self._savers):
            executor.shutdown(wait=True, cancel_futures=True)
        self._writer.close()
        self._freer.shutdown(wait=True)

    def drop(self, keys: Sequence[ChunkKey]) -> None:
        dropped = [self._bytes.pop(key, None) for key in keys]
        if len(dropped) >= _MANY:
            self._freer.submit(_free, dropped)

    def trim_memory(self) -> None:
        """Return to the system, soon, what has been dropped: malloc keeps freed memory for itself."""
        self._freer.submit(_free, [])

    def drop_disk(self, keys: Sequence[ChunkKey]) -> None:
        """Discard from the store, after the writes that were asked for before."""
        self._writer.discard(keys)

    # -- to CELLS

    def load(self, action: LoadChunks, done: Callable[[Loaded], None]) -> None:
        """Begin a load; ``done`` is called on a worker thread."""
        held = {s.key: self._bytes.get(s.key) for s in action.chunks if s.tier is Tier.POOL}
        stop: Future[None] = Future()
        self._stops[action.load] = stop, done
        self._loaders.submit(self._load, action, held, stop, done)

    def stop_load(self, action: StopLoad) -> None:
        """Answer a load soon: a disk that reads for it is not waited for. One that has ended is left alone."""
        stop, done = self._stops.pop(action.load, (None, None))
        if stop is None or done is None:
            return
        if stop.cancel():  # it has not begun, and will not
            done(Loaded(action.load, 0))
        else:
            stop.set_result(None)

    def _load(
        self,
        action: LoadChunks,
        held: dict[ChunkKey, CodedChunk | None],
        stop: Future[None],
        done: Callable[[Loaded], None],
    ) -> None:
        if not stop.set_running_or_notify_cancel():
            return
        try:
            event = self._load_in_order(action, held, stop)
        except Exception:
            log.exception("load %d failed", action.load)
            event = Loaded(action.load, 0, ())
        self._stops.pop(action.load, None)
        done(event)

    def _load_in_order(self, action: LoadChunks, held: dict[ChunkKey, CodedChunk | None], stop: Future[None]) -> Loaded:
        decoding: deque[Future[tuple[KvSlab, CodedChunk | None]]] = deque()
        loading: list[Future[None]] = []
        kept: list[CodedChunk | None] = []
        damaged: tuple[ChunkKey, ...] = ()
        ahead = self._payloads(action.chunks, held, stop)
        for i, source in enumerate(action.chunks):
            try:
                for following, payload in itertools.islice(ahead, 1 if i else _AHEAD):
                    decoding.append(self._decoders.submit(self._decode, following, payload))
                slab, copy = _unless(stop, decoding.popleft())
            except _Stopped:
                break
            except ChunkDamaged as e:
                log.warning("chunk %s is damaged and will be recomputed: %s", source.key.hex(), e.message)
                damaged = (source.key,)
                break
            except Exception:  # no memory, for one: what is loaded so far counts
                log.exception("chunk %s cannot be loaded now", source.key.hex())
                break
            kept.append(copy)
            loading.append(self._engine.submit_urgent(self._engine.engine.load, action.seq, source.start, slab))
            del slab  # its buffer serves again as soon as the engine has it
            if i >= _AHEAD and loading[i - _AHEAD].exception() is not None:
                break
        for pending in decoding:
            pending.cancel()
        n_loaded = _leading_successes(loading)
        for source, copy in zip(action.chunks[:n_loaded], kept, strict=False):
            if copy is not None:
                self._bytes[source.key] = copy
        return Loaded(action.load, n_loaded, damaged if n_loaded == len(loading) else ())

    def _payloads(
        self, sources: Sequence[ChunkSource], held: dict[ChunkKey, CodedChunk | None], stop: Future[None]
    ) -> Iterator[tuple[ChunkSource, CodedChunk | None]]:
        """Each source with its bytes, in order; DISK is read one large piece ahead of what is being decoded."""
        pieces = [sources[i : i + _READ_CHUNKS] for i in range(0, len(sources), _READ_CHUNKS)]
        reading = self._readers.submit(self._read, pieces[0])
        try:
            for i, piece in enumerate(pieces):
                read = _unless(stop, reading)
                if i + 1 < len(pieces):
                    reading = self._readers.submit(self._read, pieces[i + 1])
                for source in piece:
                    yield source, read.get(source.key) if source.tier is Tier.DISK else held[source.key]
        finally:
            reading.cancel()  # nobody takes it, if it has not begun

    def _read(self, sources: Sequence[ChunkSource]) -> dict[ChunkKey, CodedChunk | None]:
        keys = [s.key for s in sources if s.tier is Tier.DISK]
        return dict(zip(keys, self._get(keys), strict=True))

    def _get(self, keys: Sequence[ChunkKey]) -> Sequence[CodedChunk | None]:
        if not keys:
            return ()
        try:
            return self._store.get(keys)
        except Exception as e:
            log.warning("cannot read %d chunks: %r", len(keys), e)
            return [None] * len(keys)

    def _decode(self, source: ChunkSource, payload: CodedChunk | None) -> tuple[KvSlab, CodedChunk | None]:
        """The chunk for the engine, and what the POOL keeps of it. Raises ChunkDamaged."""
        if payload is None:
            raise ChunkDamaged("its bytes are missing")
        slab = self._engine.engine.blank(source.stop - source.start)
        self._codec.decode(payload, source.key, slab)
        # A copy of a view, since that would keep the read buffer of all the chunks alive; bytes stay as they are.
        return slab, bytes(payload) if source.keep else None

    # -- to the POOL

    def fetch(self, action: FetchChunks, done: Callable[[Fetched], None]) -> None:
        """Begin to read chunks into RAM; ``done`` is called on a worker thread. One fetch at a time, in order."""
        self._fetcher.submit(self._fetch, action, done)

    def _fetch(self, action: FetchChunks, done: Callable[[Fetched], None]) -> None:
        sizes = [0] * len(action.keys)
        try:
            for i, (key, payload) in enumerate(zip(action.keys, self._get(action.keys), strict=True)):
                if _sound(key, payload) and payload is not None:
                    self._bytes[key] = bytes(payload)
                    sizes[i] = len(payload)
        except Exception:
            log.exception("fetch %d failed; its chunks will be recomputed", action.fetch)
        done(Fetched(action.fetch, tuple(sizes)))

    # -- from CELLS

    def save(self, action: SaveChunks, done: Callable[[Saved], None]) -> None:
        """Export at once in the engine's order, then code in the background; ``done`` comes on a worker thread."""
        exported = self._engine.submit(self._export, action.seq, action.chunks)
        self._savers.submit(self._save, action, exported, done)

    def _export(self, seq: int, targets: Sequence[ChunkTarget]) -> list[KvSlab]:
        self._codec.set_key_weights(self._engine.engine.key_weights())
        return [self._engine.engine.export(seq, t.start, t.stop) for t in targets]

    def _save(self, action: SaveChunks, exported: Future[list[KvSlab]], done: Callable[[Saved], None]) -> None:
        sizes = [0] * len(action.chunks)
        try:
            slabs = exported.result()
            for i, target in enumerate(action.chunks):
                sinks = sinks_at(target.start)
                payload = self._codec.encode(slabs[i], target.precision, target.key, sinks)
                if len(payload) > self._codec.encoded_size(target.stop - target.start, target.precision, sinks):
                    log.warning("chunk %s has values that no group can hold; it is not kept", target.key.hex())
                    continue
                self._bytes[target.key] = payload
                sizes[i] = len(payload)
        except Exception:
            log.exception("save %d failed; its chunks will be recomputed when needed", action.save)
        done(Saved(action.save, tuple(sizes)))

    # -- with fewer bits

    def lower(self, action: LowerChunks, done: Callable[[Lowered], None]) -> None:
        """Begin to code chunks again; ``done`` is called on a worker thread."""
        held = [self._bytes[key] for key, _ in action.chunks]
        self._savers.submit(self._lower, action, held, done)

    def _lower(self, action: LowerChunks, held: list[CodedChunk], done: Callable[[Lowered], None]) -> None:
        sizes = [0] * len(held)
        for i, ((key, precision), payload) in enumerate(zip(action.chunks, held, strict=True)):
            try:
                smaller = self._codec.lower(payload, precision, key)
            except Exception as e:
                log.warning("chunk %s cannot be coded again: %r", key.hex(), e)
                continue
            if len(smaller) < len(payload):
                self._bytes[key] = smaller
                sizes[i] = len(smaller)
        done(Lowered(action.lower, tuple(sizes)))

    # -- to DISK

    def write(self, action: WriteChunks, done: Callable[[Written], None]) -> None:
        """Begin a write; ``done`` is called on a worker thread."""
        self._writer.write(action, [self._bytes[key] for key in action.keys], done)

    def stop_write(self, action: StopWrite) -> None:
        self._writer.stop(action.write)

    def persist_sensitivity(self, action: PersistSensitivity) -> None:
        """Tell the store, after the writes that were asked for before."""
        self._writer.persist_sensitivity(action)


def _unless(stop: Future[None], work: Future[T]) -> T:
    """The result of ``work``. Raises _Stopped as soon as ``stop`` is done."""
    if not work.done():
        either: list[Future[Any]] = [stop, work]
        wait(either, return_when=FIRST_COMPLETED)
    if stop.done():
        raise _Stopped
    return work.result()


def _sound(key: ChunkKey, payload: CodedChunk | None) -> bool:
    try:
        if payload is None:
            raise ChunkDamaged("its bytes are missing")
        check(payload, key)
    except ChunkDamaged as e:
        log.warning("chunk %s is damaged and will be recomputed: %s", key.hex(), e.message)
        return False
    return True


def _free(dropped: list[CodedChunk | None]) -> None:
    """A few at a time: freeing holds the GIL, trimming the lock of malloc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others give memory back by themselves
    while True:
        for _ in range(_MANY // 8):
            del dropped[-8:]
            time.sleep(0)
        if trim is not None:
            trim(0)
        if not dropped:
            return


def _leading_successes(loading: Sequence[Future[None]]) -> int:
    """How many loads succeeded before the first that failed; those behind it could not but fail."""
    for i, future in enumerate(loading):
        if (error := future.exception()) is not None:
            log.error("the engine could not load a chunk: %r", error)
            return i
    return len(loading)
