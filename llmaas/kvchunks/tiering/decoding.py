"""Decodes the chunks of a load on threads of its own, some neighbours together into memory that the engine takes as it
is.

Law: it decides nothing. What cannot be decoded shows in the future of its chunk, never as an exception of ``begin``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from llmaas.engine.base import tokens_per_load
from llmaas.engine.thread import EngineThread
from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, CodedChunk
from llmaas.kvchunks.tiering.disk_reader import to_be_kept
from llmaas.kvchunks.tiering.payload_reader import Payload, Stopped, unless_stopped
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import ChunkSource
from llmaas.records import CHUNK_TOKENS


@dataclass(slots=True, eq=False)
class LoadPiece:
    """Consecutive chunks that go into cells in one call. ``slab`` is None if there is no memory for it."""

    chunks: list[Payload]
    """Cleared when the chunks are in cells: until then they may have to be decoded again."""
    slab: KvSlab | None
    decoding: list[Future[CodedChunk | None]]
    """For each chunk: the coded bytes that the POOL is to keep, if it is; or why it could not be decoded."""

    @property
    def start(self) -> int:
        return self.chunks[0][0].start

    def wait(self, stop: Future[None]) -> tuple[int, Exception | None]:
        """Wait until all is decoded. Returns how many of its chunks are, and the error of the next. Raises Stopped."""
        for i, decoded in enumerate(self.decoding):
            try:
                unless_stopped(stop, decoded)
            except Stopped:
                raise
            except Exception as error:
                return i, error
        return len(self.decoding), None

    def cancel(self) -> None:
        """Decode nothing more than what has begun."""
        for decoded in self.decoding:
            decoded.cancel()


class Decoders:
    """``workers`` threads that decode."""

    def __init__(self, engine: EngineThread, codec: Codec, workers: int) -> None:
        self._engine, self._codec = engine, codec
        self._threads = Workers(workers, "decode")
        self.chunks_per_piece = tokens_per_load(codec.geometry.token_bytes) // CHUNK_TOKENS
        """Chunks that are best put into cells together."""

    def close(self) -> None:
        """End the threads. What they decode now is finished; what waits is not begun."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def begin(self, chunks: Sequence[Payload]) -> LoadPiece:
        """Begin to decode consecutive chunks, at least one."""
        piece = LoadPiece(list(chunks), None, [])
        start, stop = chunks[0][0].start, chunks[-1][0].stop
        try:
            piece.slab = slab = self._engine.engine.blank(stop - start)
        except MemoryError as error:
            failed: Future[CodedChunk | None] = Future()
            failed.set_exception(error)
            piece.decoding.append(failed)
            return piece
        for source, payload in chunks:
            rows = slice(source.start - start, source.stop - start)
            into = KvSlab(slab.k[:, rows], slab.v[:, rows], owner=slab.owner)
            piece.decoding.append(self._threads.submit(self._decode, source, payload, into))
        return piece

    def _decode(self, source: ChunkSource, payload: CodedChunk | None, into: KvSlab) -> CodedChunk | None:
        """Decode one chunk on this thread. Returns the coded bytes that the POOL is to keep, if it is. Raises
        ChunkDamaged."""
        if payload is None:
            raise ChunkDamaged("its bytes are missing")
        self._codec.decode(payload, source.key, into)
        return to_be_kept(payload) if source.keep else None
