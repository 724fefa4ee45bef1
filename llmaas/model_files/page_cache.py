"""How much of a file is in the page cache, as the kernel says it (mincore(2)).

Law: asking brings nothing in and takes nothing out. What the kernel does not tell is None: it says "all" of files that
this user could neither write nor owns, whatever is so.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import BinaryIO

PAGE = mmap.PAGESIZE
_PROT_READ, _MAP_SHARED = 1, 1
_LOWEST_BIT = bytes(value & 1 for value in range(256))
"""The other bits of what mincore tells mean nothing."""
_FAILED = ctypes.c_void_p(-1).value


def resident_pages(file: BinaryIO) -> bytes | None:
    """One byte for each page of the file: 1 if it is in the page cache, else 0. None if that cannot be known."""
    fd = file.fileno()
    info = os.fstat(fd)
    if not info.st_size:
        return b""
    writable = os.access(f"/proc/self/fd/{fd}", os.W_OK)
    if not (writable or info.st_uid == os.geteuid()):
        return None
    libc = _libc()
    if libc is None:
        return None
    address = libc.mmap(None, info.st_size, _PROT_READ, _MAP_SHARED, fd, 0)
    if address in (None, _FAILED):
        return None
    try:
        pages = (ctypes.c_ubyte * (-(-info.st_size // PAGE)))()
        return bytes(pages).translate(_LOWEST_BIT) if libc.mincore(address, info.st_size, pages) == 0 else None
    finally:
        libc.munmap(address, info.st_size)


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
