"""Memory for the bytes of chunks, in large pages where the kernel has them.

Law: nobody else views a chunk's memory, and it goes back to the kernel when nobody views it any more.

A load of 4096 tokens reads some 14 to 30 MB. What is read lies where its chunks stay: they are decrypted in place, and
each gives its pages back by itself. In pages of 4 KB each page is a fault, and all faults take four times as long as
decrypting. The price of large ones: up to one that is not used yet.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from contextlib import suppress

import numpy as np

PAGE = mmap.PAGESIZE
_LARGE_PAGE = 2 << 20
_SEGMENT = 16 * _LARGE_PAGE
"""Bytes that are asked for at once. They take memory where they are used."""
MOST = 4 << 20
"""Bytes of one piece."""
_POPULATE_WRITE = 23
"""``MADV_POPULATE_WRITE`` (Linux 5.14)."""
_libc = ctypes.CDLL(None)


class OwnMemory(np.ndarray):
    """Bytes of a chunk that give their pages back when nobody views them."""


class _ReadMemory(np.ndarray):
    """Bytes that were read, of several chunks perhaps."""

    pages: Pages
    address: int


class Pages:
    """Whole pages that several views use, from ``begin`` of a map on. Each page goes back when no view uses it."""

    def __init__(self, memory: mmap.mmap, begin: int, nbytes: int) -> None:
        self._map, self._begin = memory, begin
        self._users = np.zeros(nbytes // PAGE, np.int32)
        self._lock = threading.RLock()  # a view may die, by a garbage collection, while another one is made
        self._claimed = set[int]()

    def claim(self, start: int) -> bool:
        """Whether nobody has claimed the chunk that begins there before."""
        with self._lock:
            fresh = start not in self._claimed
            self._claimed.add(start)
        return fresh

    def used_by(self, view: np.ndarray, start: int, nbytes: int) -> None:
        """``view`` has so many bytes from ``start`` on."""
        first, end = start // PAGE, -(-(start + nbytes) // PAGE)
        with self._lock:
            self._users[first:end] += 1
        weakref.finalize(view, self._let_go, first, end).atexit = False

    def _let_go(self, first: int, end: int) -> None:
        with self._lock:
            self._users[first:end] -= 1
            free = first + np.flatnonzero(self._users[first:end] == 0)
            for run in np.split(free, np.flatnonzero(np.diff(free) != 1) + 1) if len(free) else ():
                self._map.madvise(mmap.MADV_DONTNEED, self._begin + int(run[0]) * PAGE, len(run) * PAGE)


class ChunkMemory:
    """Gives memory to any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._map = mmap.mmap(-1, PAGE)
        self._offset = 0
        """Of the first large page of the map."""
        self._used = self._there = self._size = 0
        """Bytes from there on that have been given, that are in memory, and that there are."""

    def take(self, size: int) -> memoryview:
        """``size`` bytes for one chunk, of any values."""
        part = self._piece(size, OwnMemory)
        return np.empty(size, np.uint8).view(OwnMemory).data if part is None else part.data

    def take_for_reading(self, size: int) -> memoryview:
        """``size`` bytes for several chunks, of any values. Up to ``MOST`` bytes begin at a page. See ``chunk_of``."""
        part = self._piece(size, _ReadMemory)
        return np.empty(size, np.uint8).data if part is None else part.data

    def _piece(self, size: int, kind: type[np.ndarray]) -> np.ndarray | None:
        if not 0 < size <= MOST:
            return None
        whole = -(-size // PAGE) * PAGE
        with self._lock:
            if self._used + whole > self._size:
                self._begin_segment()
            begin, self._used = self._used, self._used + whole
            while self._there < self._used:
                # By one thread: two that write to a new page at once would both make it, and one in vain.
                self._there += _make(self._map, self._offset + self._there)
            begin += self._offset
            part = np.frombuffer(self._map, np.uint8, size, begin).view(kind)
        pages = Pages(self._map, begin, whole)
        pages.used_by(part, 0, size)
        if isinstance(part, _ReadMemory):
            part.pages, part.address = pages, _address(part)
        return part

    def _begin_segment(self) -> None:
        try:
            self._map = mmap.mmap(-1, _SEGMENT + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no room for {_SEGMENT} bytes of chunks") from error
        self._offset = -_address(self._map) % _LARGE_PAGE
        self._used = self._there = 0
        self._size = _SEGMENT
        _advise(self._map, "MADV_NOHUGEPAGE", 0, len(self._map))


MEMORY = ChunkMemory()
"""Of the process."""


def chunk_of(view: memoryview, start: int, stop: int) -> memoryview | None:
    """The bytes ``start`` to ``stop`` of a view of what was read, which stay when the rest goes. None: the view is of
    other memory, or somebody has these bytes already."""
    whole = view.obj
    if not isinstance(whole, _ReadMemory):
        return None
    begin = _address(view) - whole.address + start
    if not whole.pages.claim(begin):
        return None
    part = np.asarray(whole)[begin : begin + stop - start].view(OwnMemory)
    whole.pages.used_by(part, begin, stop - start)
    return part.data


def _make(memory: mmap.mmap, at: int) -> int:
    """Have a large page there. Returns its size. It is one only while it is made: the kernel would fill up what has
    been given back of it again."""
    _advise(memory, "MADV_HUGEPAGE", at, _LARGE_PAGE)
    if hasattr(_libc, "madvise"):
        _libc.madvise(ctypes.c_void_p(_address(memory) + at), ctypes.c_size_t(_LARGE_PAGE), _POPULATE_WRITE)
    _advise(memory, "MADV_NOHUGEPAGE", at, _LARGE_PAGE)
    return _LARGE_PAGE


def _advise(memory: mmap.mmap, how: str, start: int, size: int) -> None:
    with suppress(AttributeError, OSError):  # not Linux, or a kernel without large pages
        memory.madvise(getattr(mmap, how), start, size)


def _address(of: mmap.mmap | memoryview | np.ndarray) -> int:
    return int(np.frombuffer(of, np.uint8).__array_interface__["data"][0])
