"""Memory of chunks: nobody else's, in use only as long as somebody views it."""

from __future__ import annotations

import mmap
import threading

import numpy as np
import pytest

from llmaas.kvchunks.store.chunk_memory import MOST, ChunkMemory, OwnMemory, chunk_of
from tests.support.own_memory import anonymous, needs_rollup

SIZES = [1, 100, mmap.PAGESIZE, 200_000, 215_104, 1 << 20, 2 << 20, (2 << 20) + 1, 9 << 20]


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_what_is_written_to_one_chunk_is_in_no_other() -> None:
    memory = ChunkMemory()
    chunks = [memory.take(size) for size in SIZES * 3]
    for i, chunk in enumerate(chunks):
        chunk[:] = bytes([i]) * len(chunk)
    for i, chunk in enumerate(chunks):
        assert len(chunk) == (SIZES * 3)[i] and bytes(chunk) == bytes([i]) * len(chunk)
        assert isinstance(chunk.obj, OwnMemory) and chunk.obj.nbytes == len(chunk)


def test_threads_get_memory_of_their_own() -> None:
    memory, taken = ChunkMemory(), list[memoryview]()

    def take() -> None:
        for _ in range(50):
            chunk = memory.take(50_000)
            chunk[:] = bytes(50_000)
            taken.append(chunk)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    begins = sorted(map(address, taken))
    assert len(begins) == 200 and min(np.diff(begins)) >= 50_000


@needs_rollup
def test_memory_goes_back_when_nobody_views_it() -> None:
    memory = ChunkMemory()
    before, chunks = anonymous(), [memory.take(400_000) for _ in range(100)]
    for chunk in chunks:
        chunk[:] = bytes(len(chunk))
    part = chunks[0][100:200]
    assert anonymous() - before >= 40_000_000
    del chunks[::2], chunk
    assert 20_000_000 <= anonymous() - before <= 25_000_000
    chunks.clear()
    assert anonymous() - before <= 3_000_000 and bytes(part) == bytes(100)


def test_threads_that_read_get_memory_of_their_own() -> None:
    memory, taken = ChunkMemory(), list[memoryview]()
    threads = [threading.Thread(target=lambda: taken.append(memory.take_for_reading(1_800_000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    begins = sorted(map(address, taken))
    assert len(begins) == 8 and min(np.diff(begins)) >= 1_800_000 and not any(b % mmap.PAGESIZE for b in begins)


@pytest.mark.parametrize("size", [1, 4096, MOST, MOST + 1, 9 << 20])
def test_memory_to_read_into_is_as_long_as_it_was_asked_for(size: int) -> None:
    view = ChunkMemory().take_for_reading(size)
    view[:] = bytes([7]) * size
    assert bytes(view) == bytes([7]) * size


def test_a_chunk_of_what_was_read_is_where_it_was_read_and_nobody_elses() -> None:
    read = ChunkMemory().take_for_reading(100_000)
    read[:] = np.random.default_rng(1).bytes(len(read))
    data = bytes(read)
    chunk = chunk_of(read[1000:50_000], 12, 40_000)
    assert chunk is not None and address(chunk) == address(read) + 1012 and bytes(chunk) == data[1012:41_000]
    assert isinstance(chunk.obj, OwnMemory) and chunk.obj.nbytes == len(chunk)
    assert chunk_of(read[1000:50_000], 12, 40_000) is None  # somebody has it
    del read
    chunk[0] = 255
    assert bytes(chunk[1:]) == data[1013:41_000] and chunk[0] == 255


def test_there_is_no_chunk_of_other_memory() -> None:
    for other in (memoryview(bytearray(100)), ChunkMemory().take(100), ChunkMemory().take_for_reading(MOST + 1)):
        assert chunk_of(other, 10, 20) is None


@needs_rollup
def test_each_chunk_of_what_was_read_gives_its_pages_back_by_itself() -> None:
    memory, size = ChunkMemory(), 400_000
    reads = [memory.take_for_reading(9 * size) for _ in range(4)]
    for read in reads:
        read[:] = bytes([1]) * len(read)
    before = anonymous()
    chunks = [chunk_of(read[i * size : (i + 1) * size], 12, size - 16) for read in reads for i in range(9)]
    del reads, read
    assert before - anonymous() <= 1_000_000
    del chunks[::2]
    assert abs(before - anonymous() - 18 * size) <= 1_000_000
    assert all(chunk is not None and bytes(chunk) == bytes([1]) * len(chunk) for chunk in chunks)
    chunks.clear()
    assert before - anonymous() >= 35 * size


@needs_rollup
def test_what_was_read_and_not_decrypted_goes_back_with_the_read() -> None:
    memory, size = ChunkMemory(), 400_000
    read = memory.take_for_reading(9 * size)
    read[:] = bytes([1]) * len(read)
    before, chunk = anonymous(), chunk_of(read[4 * size : 5 * size], 12, size - 16)
    del read
    assert before - anonymous() >= 7 * size and chunk is not None and bytes(chunk) == bytes([1]) * len(chunk)


@needs_rollup
def test_at_most_a_large_page_is_there_that_is_not_used() -> None:
    memory, before = ChunkMemory(), anonymous()
    taken = [memory.take_for_reading(1_900_000) for _ in range(40)]
    assert anonymous() - before <= sum(map(len, taken)) * 1.06 + (2 << 20) + 1_000_000
