"""Memory of chunks: nobody else's, in use only as long as somebody views it."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np
import pytest

from llmaas.kvchunks.store.chunk_memory import READ_BUFFER, ChunkMemory, OwnMemory, ReadBuffers

SIZES = [1, 100, mmap.PAGESIZE, 200_000, 215_104, 1 << 20, 2 << 20, (2 << 20) + 1, 9 << 20]


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def anonymous() -> int:
    """Bytes of this process that are in memory and in no file."""
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))


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


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell")
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
    assert anonymous() - before <= 10_000_000 and bytes(part) == bytes(100)


def test_a_read_buffer_is_used_again_while_others_are_in_use_and_not_kept_for_later() -> None:
    buffers = ReadBuffers()
    first, second = buffers.take(1000), buffers.take(READ_BUFFER)
    second[:] = bytes([2]) * READ_BUFFER
    assert address(first) % mmap.PAGESIZE == address(second) % mmap.PAGESIZE == 0 and first is not second
    where, part = address(first), second[5:7]
    del first, second
    assert address(buffers.take(2000)) == where
    third = buffers.take(3000)
    assert address(third) == where and bytes(part) == b"\2\2"
    third[:] = bytes([3]) * 3000
    assert bytes(part) == b"\2\2"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell")
def test_no_read_buffer_is_kept_when_none_is_in_use() -> None:
    buffers, before = ReadBuffers(), anonymous()
    out = [buffers.take(READ_BUFFER) for _ in range(8)]
    for buffer in out:
        buffer[:] = bytes(READ_BUFFER)
    assert anonymous() - before >= 8 * READ_BUFFER
    del out, buffer
    assert anonymous() - before <= READ_BUFFER


def test_a_read_buffer_of_any_size_is_as_long_as_it_was_asked_for() -> None:
    buffers = ReadBuffers()
    assert [len(buffers.take(size)) for size in (1, 4096, READ_BUFFER, READ_BUFFER + 1, 9 << 20)] == [
        1,
        4096,
        READ_BUFFER,
        READ_BUFFER + 1,
        9 << 20,
    ]
