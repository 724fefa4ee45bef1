"""Gives the coded bytes of a load's chunks, from the POOL or from DISK, which is read ahead.

Law: it decides nothing. What cannot be read is None. Whoever stops the load need not wait for the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from queue import SimpleQueue
from typing import Any, TypeVar

from llmaas.kvchunks.codec.codec import CodedChunk
from llmaas.kvchunks.tiering.disk_reader import DiskReader, Located, UnopenedChunk
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import ChunkSource
from llmaas.records import ChunkKey, Tier

T = TypeVar("T")

Held = Mapping[ChunkKey, CodedChunk | None]
Payload = tuple[ChunkSource, CodedChunk | None]
Arrived = tuple[ChunkSource, CodedChunk | UnopenedChunk | None]
_Read = dict[ChunkKey, CodedChunk | None]

_PIECE_BYTES = 2 << 20
"""Of one read in order. A load holds about five times as much, since one piece is being decoded while the next ones are
read and decrypted."""
_PIECES_AHEAD = 2
_FIRST_PIECE, _MOST_CHUNKS = 4, 32
"""Chunks of a load's first piece, whose size is not known yet, and of any one read at most."""
_FIRST_BYTES = (450_000, 450_000, 900_000, 900_000)
"""Of a load's first reads in any order: the disk shares itself out among all that are under way, and two threads are
soon to have something to decode."""
_READ_BYTES, _LAST_BYTES = 1_800_000, 900_000
"""Of those in the middle; and of the last ones, so that all threads end at about the same time."""
_READS_AHEAD = 4
"""Reads in any order that are under way, or there and not taken yet: the disk is busy while chunks are decoded."""


class Stopped(Exception):
    """The load has been stopped: nobody wants it any more."""


class PayloadReader:
    """The threads that read. Two loads may use it at once."""

    def __init__(self, reader: DiskReader) -> None:
        self._reader = reader
        self._threads = Workers(2 * _PIECES_AHEAD, "read")

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
        first = self._threads.submit(self._read, sources[:_FIRST_PIECE])
        return _one_by_one(self._pieces(sources, held, stop, first))

    def in_any_order(self, sources: Sequence[ChunkSource], stop: Future[None]) -> Reads:
        """Those of ``sources`` that are on DISK, as they lie there. Reading goes on while nobody takes anything, for
        some reads.

        Chunks are written when they have been measured, which is not the order of their positions. In that order a read
        has neighbours, and the kernel reads ahead of it.
        """
        located = self._reader.locate([source for source in sources if source.tier is Tier.DISK])
        return Reads(self._threads, self._read_located, _cut(located), stop)

    def _pieces(
        self, sources: Sequence[ChunkSource], held: Held, stop: Future[None], first: Future[_Read]
    ) -> Generator[deque[Payload], None, None]:
        """``first``: the read that has begun."""
        at = min(_FIRST_PIECE, len(sources))
        reading = deque([(sources[:at], first)])
        try:
            while reading:
                piece, under_way = reading.popleft()
                read = unless_stopped(stop, under_way)
                n = _n_to_read(read)
                while at < len(sources) and len(reading) < _PIECES_AHEAD:
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

    def _read_located(self, located: Sequence[Located]) -> list[Arrived]:
        return list(zip([source for source, _ in located], self._reader.read(located), strict=True))


class Reads(Iterator["list[Arrived]"]):
    """What one load reads in any order, as it comes. Taking raises Stopped as soon as ``stop`` is done; one thread at a
    time may do it.
    """

    def __init__(
        self,
        threads: Workers,
        read: Callable[[Sequence[Located]], list[Arrived]],
        reads: Sequence[Sequence[Located]],
        stop: Future[None],
    ) -> None:
        """``reads``: what ``read`` is called with, on ``threads``, one after the other."""
        self._threads, self._read, self._stop = threads, read, stop
        self._waiting = deque(reads)
        self._under_way = set[Future[list[Arrived]]]()
        self._ended = SimpleQueue[Future[list[Arrived]] | None]()
        """Reads under way that have ended, and None once the load has been stopped."""
        for _ in range(_READS_AHEAD):
            self._read_on()
        stop.add_done_callback(lambda _: self._ended.put(None))

    def __next__(self) -> list[Arrived]:
        if self._stop.done():
            raise Stopped
        if not self._under_way:
            raise StopIteration
        ended = self._ended.get()
        if ended is None:
            raise Stopped
        self._under_way.discard(ended)
        self._read_on()
        return ended.result()

    def _read_on(self) -> None:
        if self._waiting:
            begun = self._threads.submit(self._read, self._waiting.popleft())
            self._under_way.add(begun)
            begun.add_done_callback(self._ended.put)

    def close(self) -> None:
        """Begin no more reads: nobody will take their results."""
        self._waiting.clear()
        for begun in list(self._under_way):
            begun.cancel()


def _cut(located: Sequence[Located]) -> list[list[Located]]:
    """What to read together: neighbours of some bytes each; fewer at the beginning, so that decoding begins soon, and
    at the end, so that all threads end at about the same time.
    """
    reads, size = list[list[Located]](), 0
    left = sum(place.nbytes for _, place in located if place)
    most = 0
    for one in located:
        nbytes = one.place.nbytes if one.place else 0
        if not reads or size + nbytes > most or len(reads[-1]) == _MOST_CHUNKS:
            begins = len(reads) < len(_FIRST_BYTES)
            most = _FIRST_BYTES[len(reads)] if begins else min(_READ_BYTES, max(_LAST_BYTES, left // 2))
            reads.append([])
            size = 0
        reads[-1].append(one)
        size += nbytes
        left -= nbytes
    return reads


def _one_by_one(pieces: Generator[deque[Payload], None, None]) -> Generator[Payload, None, None]:
    with closing(pieces):
        for piece in pieces:
            while piece:  # let go of what is being decoded: the rest of the piece is as much again
                yield piece.popleft()


def _n_to_read(read: Mapping[ChunkKey, CodedChunk | None]) -> int:
    """How many chunks to read next, going by the size of those that were read just now."""
    sizes = [len(payload) for payload in read.values() if payload is not None]
    return min(_MOST_CHUNKS, max(1, _PIECE_BYTES * len(sizes) // sum(sizes))) if sizes else _MOST_CHUNKS


def unless_stopped(stop: Future[None], work: Future[T]) -> T:
    """The result of ``work``. Raises Stopped as soon as ``stop`` is done."""
    if not work.done():
        either: list[Future[Any]] = [stop, work]
        wait(either, return_when=FIRST_COMPLETED)
    if stop.done():
        raise Stopped
    return work.result()
