"""Gives the coded bytes of a load's chunks in order, from the POOL or from DISK, which is read ahead.

Law: it decides nothing. What cannot be read is None. Whoever stops the load need not wait for the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from typing import Any, TypeVar

from llmaas.kvchunks.codec.codec import CodedChunk
from llmaas.kvchunks.tiering.disk_reader import DiskReader
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import ChunkSource
from llmaas.records import ChunkKey, Tier

T = TypeVar("T")

Held = Mapping[ChunkKey, CodedChunk | None]
Payload = tuple[ChunkSource, CodedChunk | None]
_Read = dict[ChunkKey, CodedChunk | None]

_READ_BYTES = 2 << 20
"""Of one read: a device reads in large runs. A load holds about five times as much, since one piece is being decoded
while the next ones are read and decrypted."""
_READS_AHEAD = 2
_FIRST_READ, _READ_CHUNKS = 4, 32
"""Chunks of a load's first read, whose size is not known yet, and of each later one at most."""


class Stopped(Exception):
    """The load has been stopped: nobody wants it any more."""


class PayloadReader:
    """The threads that read. ``payloads`` may be called by two loads at once."""

    def __init__(self, reader: DiskReader) -> None:
        self._reader = reader
        self._threads = Workers(2 * _READS_AHEAD, "read")

    def close(self) -> None:
        """End the threads. What they read now is finished; what waits is not begun."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def payloads(
        self, sources: Sequence[ChunkSource], held: Held, stop: Future[None]
    ) -> Generator[Payload, None, None]:
        """Each source with its coded bytes, in order. DISK is read two pieces ahead of what is being decoded: while one
        is decrypted, the disk reads the next. The first read begins with this call.

        ``held`` has the bytes of those in the POOL. Raises Stopped as soon as ``stop`` is done.
        """
        return _one_by_one(self._pieces(sources, held, stop, self._first_read(sources)))

    def in_any_order(
        self, sources: Sequence[ChunkSource], held: Held, stop: Future[None]
    ) -> Generator[deque[Payload], None, None]:
        """As ``payloads``, but first those in the POOL, then those on DISK as they lie there; and as many together as
        are there together. Whoever takes them out of the deque lets go of what is done.

        Chunks are written when they have been measured, which is not the order of their positions. In that order a read
        has neighbours, and the kernel reads ahead of it.
        """
        in_pool = [source for source in sources if source.tier is Tier.POOL]
        on_disk = self._reader.by_place([source for source in sources if source.tier is Tier.DISK])
        return self._pieces(in_pool + on_disk, held, stop, self._first_read(on_disk), len(in_pool))

    def _first_read(self, sources: Sequence[ChunkSource]) -> Future[_Read] | None:
        return self._threads.submit(self._read, sources[:_FIRST_READ]) if sources else None

    def _pieces(
        self,
        sources: Sequence[ChunkSource],
        held: Held,
        stop: Future[None],
        first: Future[_Read] | None,
        n_held: int = 0,
    ) -> Generator[deque[Payload], None, None]:
        """``first``: the read that has begun, of sources behind the first ``n_held``, which are in the POOL."""
        at = min(n_held + _FIRST_READ, len(sources))
        reading = deque([(sources[n_held:at], first)] if first else [])
        try:
            if n_held:
                yield deque((source, held[source.key]) for source in sources[:n_held])
            while reading:
                piece, under_way = reading.popleft()
                read = unless_stopped(stop, under_way)
                n = _n_to_read(read)
                while at < len(sources) and len(reading) < _READS_AHEAD:
                    following = sources[at : at + n]
                    reading.append((following, self._threads.submit(self._read, following)))
                    at += len(following)
                # Popped, so that only the deque holds it.
                yield deque(
                    (source, read.pop(source.key, None) if source.tier is Tier.DISK else held[source.key])
                    for source in piece
                )
        finally:
            for _, under_way in reading:
                under_way.cancel()  # if it has not begun: nobody will take its result

    def _read(self, sources: Sequence[ChunkSource]) -> _Read:
        keys = [s.key for s in sources if s.tier is Tier.DISK]
        return dict(zip(keys, self._reader.get(keys), strict=True))


def _one_by_one(pieces: Generator[deque[Payload], None, None]) -> Generator[Payload, None, None]:
    with closing(pieces):
        for piece in pieces:
            while piece:  # let go of what is being decoded: the rest of the piece is as much again
                yield piece.popleft()


def _n_to_read(read: Mapping[ChunkKey, CodedChunk | None]) -> int:
    """How many chunks to read next, going by the size of those that were read just now."""
    sizes = [len(payload) for payload in read.values() if payload is not None]
    return min(_READ_CHUNKS, max(1, _READ_BYTES * len(sizes) // sum(sizes))) if sizes else _READ_CHUNKS


def unless_stopped(stop: Future[None], work: Future[T]) -> T:
    """The result of ``work``. Raises Stopped as soon as ``stop`` is done."""
    if not work.done():
        either: list[Future[Any]] = [stop, work]
        wait(either, return_when=FIRST_COMPLETED)
    if stop.done():
        raise Stopped
    return work.result()
