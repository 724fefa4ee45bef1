"""Memory for the bytes of chunks, made before it is written to.

Law: nobody else views a chunk's memory, and it goes back to the kernel when nobody views it any more.

A load of 4096 tokens makes some 14 to 30 MB of chunks, and reads as much. Each page of 4 KB would be a fault, and
all faults take four times as long as decrypting. Large pages were quicker still (20 ms in place of 26 for Qwen2.5-0.5B)
and took 14 MB more of a small daemon.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from contextlib import suppress

import numpy as np

_SEGMENT = 8 << 20
"""Bytes that are asked for at once. They take memory where they are written."""
READ_BUFFER = 4 << 20
_AHEAD = 256 << 10
"""Bytes that are put in memory at once, before they are written to."""
_POPULATE_WRITE = 23
"""``MADV_POPULATE_WRITE`` (Linux 5.14)."""
_libc = ctypes.CDLL(None)


class OwnMemory(np.ndarray):
    """Bytes that share no page with others."""


class ChunkMemory:
    """Gives memory to any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self._bytes = np.empty(0, np.uint8)
        """The segment that is being given away."""
        self._used = self._there = 0

    def take(self, size: int) -> memoryview:
        """``size`` bytes, of any values."""
        if not 0 < size <= _SEGMENT // 2:
            return np.empty(size, np.uint8).view(OwnMemory).data
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        with self._lock:
            if self._used + whole > len(self._bytes):
                self._begin_segment()
            begin, self._used = self._used, self._used + whole
            while self._used > self._there:
                # By one thread: two that write to a new page at once would both make it, and one in vain.
                self._there += _populate(self._bytes[self._there : self._there + _AHEAD])
            part = self._bytes[begin : begin + size].view(OwnMemory)
            weakref.finalize(part, _give_back, self._map, begin, whole).atexit = False
        return part.data

    def _begin_segment(self) -> None:
        self._map = _small_pages(_SEGMENT)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._used = self._there = 0


class ReadBuffers:
    """Memory to read into. It is used again as long as any of it is in use, so that a load reads into what is there,
    and none is kept for the next.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # memory may be given back, by a garbage collection, while it is being taken
        self._spare: list[mmap.mmap] = []
        self._n_out = 0

    def take(self, size: int) -> memoryview:
        """``size`` bytes, of any values. Up to ``READ_BUFFER`` bytes begin at a page."""
        if not 0 < size <= READ_BUFFER:
            return np.empty(size, np.uint8).data
        with self._lock:
            self._n_out += 1
            buffer = self._spare.pop() if self._spare else _small_pages(READ_BUFFER)
        part = np.frombuffer(buffer, np.uint8)[:size]
        weakref.finalize(part, self._take_back, buffer).atexit = False
        return part.data

    def _take_back(self, buffer: mmap.mmap) -> None:
        with self._lock:
            self._n_out -= 1
            self._spare.append(buffer)
            if not self._n_out:
                self._spare.clear()


def _small_pages(size: int) -> mmap.mmap:
    """``size`` bytes that are never made of large pages. Raises MemoryError."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {size} bytes of chunks") from error
    with suppress(AttributeError, OSError):  # not Linux, or a kernel without large pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def _populate(part: np.ndarray) -> int:
    """Let ``part`` be in memory, as far as the kernel can do that. Returns its length."""
    if hasattr(_libc, "madvise"):
        _libc.madvise(ctypes.c_void_p(part.ctypes.data), ctypes.c_size_t(part.nbytes), _POPULATE_WRITE)
    return part.nbytes


def _give_back(memory: mmap.mmap, start: int, size: int) -> None:
    memory.madvise(mmap.MADV_DONTNEED, start, size)
