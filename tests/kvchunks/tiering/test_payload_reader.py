"""Reads in any order: ahead of whoever takes them, no more than so many, and ended at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing

import pytest

from llmaas.kvchunks.store.rows import Place
from llmaas.kvchunks.tiering.disk_reader import Located
from llmaas.kvchunks.tiering.payload_reader import PayloadReader, Stopped
from llmaas.planner.actions import ChunkSource
from llmaas.records import ChunkKey, Tier


class FakeReader:
    """A disk with chunks of ``nbytes`` bytes, one behind the other. ``reads`` has what was read, ``goes`` lets it."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self.reads: list[list[int]] = []
        self.goes = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def locate(self, sources: Sequence[ChunkSource]) -> list[Located]:
        return [
            Located(source, Place(source.key, 1, i * self._nbytes, self._nbytes)) for i, source in enumerate(sources)
        ]

    def read(self, located: Sequence[Located]) -> list[bytes]:
        self.reads.append([source.start // 64 for source, _ in located])
        self.begun.release()
        assert self.goes.acquire(timeout=60)
        return [bytes(source.key) for source, _ in located]

    def let(self, n: int) -> None:
        self.goes.release(n)

    def wait(self, n: int) -> None:
        """Until so many more reads have begun."""
        for _ in range(n):
            assert self.begun.acquire(timeout=60)


def sources(n: int) -> list[ChunkSource]:
    return [ChunkSource(ChunkKey(i.to_bytes(16, "big")), 64 * i, 64 * i + 64, Tier.DISK, False) for i in range(n)]


@pytest.fixture
def disk() -> FakeReader:
    return FakeReader(215_000)


@pytest.fixture
def reading(disk: FakeReader) -> Iterator[PayloadReader]:
    reader = PayloadReader(disk)  # type: ignore[arg-type]
    yield reader
    disk.let(1000)
    reader.close()


def test_every_chunk_comes_once_and_those_in_the_pool_do_not(disk: FakeReader, reading: PayloadReader) -> None:
    disk.let(1000)
    some = sources(64)
    some[5] = ChunkSource(some[5].key, 5 * 64, 6 * 64, Tier.POOL, False)
    with closing(reading.in_any_order(some, Future())) as reads:
        came = [(source, data) for read in reads for source, data in read]
    assert sorted(source.start for source, _ in came) == [64 * i for i in range(64) if i != 5]
    assert all(data == source.key for source, data in came)


@pytest.mark.parametrize("nbytes", [1000, 215_000, 403_000, 5_000_000])
def test_reads_are_small_at_the_beginning_and_at_the_end(nbytes: int) -> None:
    disk = FakeReader(nbytes)
    disk.let(1000)
    reader = PayloadReader(disk)  # type: ignore[arg-type]
    with closing(reader.in_any_order(sources(64), Future())) as reads:
        sizes = [len(read) * nbytes for read in reads]
    reader.close()
    assert max(sizes) <= max(1_800_000, nbytes) and sum(sizes) == 64 * nbytes
    ordered = [len(read) for read in sorted(disk.reads)]
    assert ordered[0] * nbytes <= max(450_000, nbytes) and ordered[-1] * nbytes <= max(900_000, nbytes)
    assert ordered[1] <= ordered[0]  # so that two threads begin


def test_reading_goes_on_while_nobody_takes_anything_but_not_for_ever(disk: FakeReader, reading: PayloadReader) -> None:
    disk.let(1000)
    with closing(reading.in_any_order(sources(64), Future())) as reads:
        disk.wait(4)
        assert not disk.begun.acquire(timeout=0.05)
        next(reads)
        disk.wait(1)
        assert not disk.begun.acquire(timeout=0.05)


def test_whoever_stops_a_load_does_not_wait_for_the_disk(disk: FakeReader, reading: PayloadReader) -> None:
    stop: Future[None] = Future()
    with closing(reading.in_any_order(sources(64), stop)) as reads:
        disk.wait(4)
        threading.Timer(0.05, stop.set_result, [None]).start()
        with pytest.raises(Stopped):
            next(reads)
        with pytest.raises(Stopped):
            next(reads)


def test_a_load_that_was_stopped_before_takes_nothing(disk: FakeReader, reading: PayloadReader) -> None:
    stop: Future[None] = Future()
    stop.set_result(None)
    disk.let(1000)
    with closing(reading.in_any_order(sources(64), stop)) as reads, pytest.raises(Stopped):
        next(reads)


def test_what_nobody_will_take_is_not_read(disk: FakeReader, reading: PayloadReader) -> None:
    first, second = (reading.in_any_order(sources(64), Future()) for _ in range(2))
    disk.wait(4)  # as many as there are threads: the second load's wait
    second.close()
    first.close()
    disk.let(1000)
    with closing(reading.in_any_order(sources(1), Future())) as reads:
        assert [source.start for source, _ in next(reads)] == [0]
    assert len(disk.reads) == 5
