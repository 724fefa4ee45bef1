"""Loads chunks into the engine's cells: from the POOL or from DISK, decoded ahead of the engine.

Law: it decides nothing, and puts chunks into cells in ascending position order. A chunk that cannot be read or decoded
is reported, never raised. Loads run at normal priority, since a request waits for them.

Its parts: ``payload_reader`` (coded bytes), ``decoding`` (from them to f16).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from itertools import islice

from llmaas.engine.base import CellsFull
from llmaas.engine.thread import EngineThread
from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, CodedChunk
from llmaas.kvchunks.tiering.decoding import Decoders, LoadPiece
from llmaas.kvchunks.tiering.disk_reader import DiskReader
from llmaas.kvchunks.tiering.filling import Filling
from llmaas.kvchunks.tiering.payload_reader import Arrived, Held, Payload, PayloadReader, Stopped, unless_stopped
from llmaas.kvchunks.tiering.state_loader import load_state
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import LoadChunks, StopLoad
from llmaas.planner.events import Loaded
from llmaas.records import ChunkKey, Tier

log = logging.getLogger(__name__)

Keep = Callable[[ChunkKey, CodedChunk], None]
Done = Callable[[Loaded], None]

_AHEAD = 2
"""Pieces decoded ahead of the engine. A load has one or two more in buffers."""


class Loader:
    """Carries out ``LoadChunks``, two loads at a time. ``keep`` takes chunks from DISK that the POOL is to hold."""

    def __init__(self, engine: EngineThread, codec: Codec, reader: DiskReader, keep: Keep, *, workers: int) -> None:
        self._engine, self._codec, self._keep = engine, codec, keep
        self._whole_states = engine.engine.info.state is not None
        self._running: dict[int, tuple[Future[None], Done]] = {}
        """For each unanswered load: its stop signal (a future that runs once the load has begun) and its ``done``."""
        self._loaders = Workers(2, "load")
        self._reading = PayloadReader(reader)
        self._decoders = Decoders(engine, codec, workers)
        self._in_cells = True
        """Whether the last load was given cells to decode into: reading begins before the engine has answered."""
        self._n_helpers = workers - 1
        self._helpers = Workers(max(1, 2 * self._n_helpers), "fill")
        """Threads that decode into cells beside the load's own."""

    def close(self) -> None:
        """End the threads. What they are doing now is finished; what waits is not begun."""
        self._loaders.shutdown(wait=True, cancel_futures=True)
        self._reading.close()
        self._decoders.close()
        self._helpers.shutdown(wait=True, cancel_futures=True)

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
        load = self._load_state if self._whole_states else self._load_in_order
        try:
            event = load(action, held, stop)
        except Stopped:  # before anything was in cells
            event = Loaded(action.load, 0)
        except Exception:
            log.exception("load %d failed", action.load)
            event = Loaded(action.load, 0, ())
        self._running.pop(action.load, None)
        done(event)

    def _load_state(self, action: LoadChunks, held: Held, stop: Future[None]) -> Loaded:
        source = action.chunks[0]
        try:
            copy = load_state(self._engine, self._reading, action, held, stop)
        except ChunkDamaged as error:
            return Loaded(action.load, 0, _report((source, None), error))
        if copy is not None:
            self._keep(source.key, copy)
        return Loaded(action.load, 1)

    def _load_in_order(self, action: LoadChunks, held: Held, stop: Future[None]) -> Loaded:
        start, end = action.chunks[0].start, action.chunks[-1].stop
        begun = self._engine.submit_urgent(self._engine.engine.begin_load, action.seq, start, end - start)
        if self._in_cells:
            with closing(self._reading.in_any_order(action.chunks, stop)) as reads:
                rows = self._begun(begun, action, stop)
                if rows is not None:
                    return self._fill(rows, action, held, reads, stop)
        else:
            rows = self._begun(begun, action, stop)
        self._in_cells = rows is not None
        if rows is not None:
            with closing(self._reading.in_any_order(action.chunks, stop)) as reads:
                return self._fill(rows, action, held, reads, stop)
        with closing(self._reading.payloads(action.chunks, held, stop)) as payloads:
            return self._load_in_pieces(action, payloads, stop)

    def _begun(self, begun: Future[list[KvSlab] | None], action: LoadChunks, stop: Future[None]) -> list[KvSlab] | None:
        """Cells for the whole load, to decode into; None if the engine cannot give them. Raises Stopped."""
        try:
            return unless_stopped(stop, begun)
        except CellsFull:  # for all: piece by piece some may find room
            return None
        except Stopped:
            if not begun.cancel() and begun.exception() is None and begun.result() is not None:
                self._drop(action.seq, action.chunks[0].start)
            raise

    def _fill(
        self, rows: list[KvSlab], action: LoadChunks, held: Held, reads: Iterator[list[Arrived]], stop: Future[None]
    ) -> Loaded:
        chunks = action.chunks
        here = deque[Payload]((chunk, held[chunk.key]) for chunk in chunks if chunk.tier is Tier.POOL)
        damaged: tuple[ChunkKey, ...] = ()
        filling = Filling(self._codec, chunks, rows, here, reads, stop)
        filled = filling.run(self._helpers, self._n_helpers)
        if filled.failed is not None and filled.error is not None:
            damaged = _report(filled.failed, filled.error)
        elif filled.error is not None:
            log.error("load %d cannot go on", action.load, exc_info=filled.error)
        if filled.n < len(chunks):
            self._drop(action.seq, chunks[filled.n].start)
        for number in range(filled.n):
            if (copy := filled.copies.get(number)) is not None:
                self._keep(chunks[number].key, copy)
        return Loaded(action.load, filled.n, damaged)

    def _drop(self, seq: int, start: int) -> None:
        """Take back the cells of chunks that are not decoded. Waits for the engine."""
        self._engine.submit_urgent(self._engine.engine.drop, seq, start).result()

    def _load_in_pieces(self, action: LoadChunks, payloads: Iterator[Payload], stop: Future[None]) -> Loaded:
        ahead: deque[LoadPiece] = deque()
        loading = _PiecesGiven(self._engine, action.seq, self._keep)
        damaged: tuple[ChunkKey, ...] = ()
        try:
            while loading.goes_on() and (piece := self._next(payloads, ahead)) is not None:
                n_decoded, error = piece.wait(stop)
                if error is None:
                    loading.submit(piece)
                    continue
                damaged = _report(piece.chunks[n_decoded], error)
                if n_decoded:  # those before it were decoded into the same slab, which cannot be loaded in parts
                    whole = self._decoders.begin(piece.chunks[:n_decoded])
                    if whole.wait(stop)[1] is None:
                        loading.submit(whole)
                break
        except Stopped:
            pass
        except Exception:  # what is in cells so far counts
            log.exception("load %d cannot go on", action.load)
        for piece in ahead:
            piece.cancel()
        n_loaded, complete = loading.finish(self._decoders)
        return Loaded(action.load, n_loaded, damaged if complete else ())

    def _next(self, payloads: Iterator[Payload], ahead: deque[LoadPiece]) -> LoadPiece | None:
        """The next piece, with others being decoded behind it; None if there is none."""
        while len(ahead) <= _AHEAD and (chunks := list(islice(payloads, self._decoders.chunks_per_piece))):
            ahead.append(self._decoders.begin(chunks))
        return ahead.popleft() if ahead else None


class _PiecesGiven:
    """The pieces of one load that were given to the engine, in order."""

    def __init__(self, engine: EngineThread, seq: int, keep: Keep) -> None:
        self._engine, self._seq, self._keep = engine, seq, keep
        self._under_way: deque[tuple[LoadPiece, Future[None]]] = deque()
        self._n_loaded = 0
        self._failed: LoadPiece | None = None

    def submit(self, piece: LoadPiece) -> None:
        """Give the engine a piece that is decoded."""
        slab, piece.slab = piece.slab, None  # its buffer is used again as soon as the engine has it
        assert slab is not None
        loaded = self._engine.submit_urgent(self._engine.engine.load, self._seq, piece.start, slab)
        self._under_way.append((piece, loaded))

    def goes_on(self) -> bool:
        """Wait until few pieces are under way. False if the engine refused one: it refuses all behind it, too."""
        while len(self._under_way) >= _AHEAD and self._failed is None:
            self._settle()
        return self._failed is None

    def finish(self, decoders: Decoders) -> tuple[int, bool]:
        """Wait for all. Returns how many chunks are in cells, and whether that is all that the engine was given.

        Chunks of a piece that the engine refused are given to it one by one.
        """
        while self._under_way:
            self._settle()
        if self._failed is None:
            return self._n_loaded, True
        chunks = self._failed.chunks if len(self._failed.chunks) > 1 else []
        self._failed = None
        for chunk in chunks:
            piece = decoders.begin([chunk])
            if piece.wait(Future())[1] is not None:
                break
            self.submit(piece)
            self._settle()
            if self._failed is not None:
                break
        return self._n_loaded, False

    def _settle(self) -> None:
        piece, loaded = self._under_way.popleft()
        if (error := loaded.exception()) is not None:
            if self._failed is None:
                log.error("the engine could not load %d chunks: %r", len(piece.chunks), error)
                self._failed = piece
            return
        self._n_loaded += len(piece.chunks)
        for (source, _), decoded in zip(piece.chunks, piece.decoding, strict=True):
            if (copy := decoded.result()) is not None:
                self._keep(source.key, copy)
        piece.chunks.clear()
        piece.decoding.clear()


def _report(chunk: Arrived, error: Exception) -> tuple[ChunkKey, ...]:
    """Log why a chunk cannot be loaded. Returns its key if it is damaged."""
    key = chunk[0].key
    if isinstance(error, ChunkDamaged):
        log.warning("chunk %s is damaged and will be recomputed: %s", key.hex(), error.message)
        return (key,)
    log.error("chunk %s cannot be loaded now: %r", key.hex(), error)  # such as no memory: what is loaded so far counts
    return ()
