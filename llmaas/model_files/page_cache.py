"""How much of a file is in the page cache, as the kernel says it (mincore(2)).

Law: asking brings nothing in and takes nothing out. What the kernel does not tell is None: it says "all" of files that
this user could neither write nor owns, whatever is so.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from llmaas.regular_file import open_regular

PAGE = mmap.PAGESIZE
_PROT_READ, _MAP_SHARED = 1, 1
_LOWEST_BIT = bytes(value & 1 for value in range(256))
"""The other bits of what mincore tells mean nothing."""
_FAILED = ctypes.c_void_p(-1).value


_PLACES, _PAGES = 64, 64
"""Where a large file is looked at, and how many pages there."""


def resident_pages(file: BinaryIO) -> bytes | None:
    """One byte for each page of the file: 1 if it is in the page cache, else 0. None if that cannot be known."""
    n_pages = -(-os.fstat(file.fileno()).st_size // PAGE)
    found = _resident(file, [(0, n_pages)])
    return None if found is None else found[0]


def missing_bytes(path: Path) -> int | None:
    """About how many bytes of the file are not in the page cache: of a large one, places that are spread evenly over it
    stand for the rest. So this takes no longer for a model of 40 GB than for a small one. None if that cannot be known.
    Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        n_pages = -(-size // PAGE)
        if n_pages <= _PLACES * _PAGES:
            places = [(0, n_pages)]
        else:
            places = [(i * (n_pages - _PAGES) // (_PLACES - 1), _PAGES) for i in range(_PLACES)]
        found = _resident(file, places)
    if found is None:
        return None
    return size * sum(each.count(0) for each in found) // max(1, sum(map(len, found)))


def _resident(file: BinaryIO, places: Sequence[tuple[int, int]]) -> list[bytes] | None:
    """For each place (first page, pages): see ``resident_pages``."""
    fd = file.fileno()
    info = os.fstat(fd)
    if not info.st_size:
        return [b""] * len(places)
    writable = os.access(f"/proc/self/fd/{fd}", os.W_OK)
    if not (writable or info.st_uid == os.geteuid()):
        return None
    libc = _libc()
    if libc is None:
        return None
    address = libc.mmap(None, info.st_size, _PROT_READ, _MAP_SHARED, fd, 0)
    if address in (None, _FAILED):
        return None
    found = []
    try:
        for first, n in places:
            pages = (ctypes.c_ubyte * n)()
            start, length = address + first * PAGE, min(n * PAGE, info.st_size - first * PAGE)
            if libc.mincore(start, length, pages) != 0:
                return None
            found.append(bytes(pages).translate(_LOWEST_BIT))
    finally:
        libc.munmap(address, info.st_size)
    return found


def resident_share(file: BinaryIO) -> float | None:
    """The share of the file that is in the page cache; None if that cannot be known."""
    pages = resident_pages(file)
    return None if pages is None else 1 - pages.count(0) / len(pages) if pages else 1.0


def _libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
        )  # fmt: skip
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None
    return libc
