"""The pages of a model's mapped files: given back to the system while nobody needs them, or kept whatever comes.

Law: neither changes a value. Pages that were given back are read from the file again when they are touched.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from llmaas.engine.llama.map_guard import mapped

_log = logging.getLogger(__name__)
_MADV_DONTNEED = 4
"""mman.h, the same on every architecture of Linux that llmaas runs on."""


def drop_pages(paths: Sequence[Path], files: Iterable[BinaryIO]) -> int:
    """Drop the pages of the mapped ``paths``, which ``files`` are, from this process and from the page cache. Returns
    the bytes that were mapped; 0 where the system does not do it. Pages that another process maps stay."""
    libc, dropped = _libc(), 0
    if libc is None or not hasattr(os, "posix_fadvise"):
        return 0
    for begin, end in mapped(paths):
        if libc.madvise(begin, end - begin, _MADV_DONTNEED) == 0:
            dropped += end - begin
    for file in files:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return dropped


def hold_pages(paths: Sequence[Path]) -> bool:
    """Lock the mapped ``paths`` in RAM (mlock(2)), as far as this process may. False if it may not; the log says what
    to do."""
    libc, wanted = _libc(), list(mapped(paths))
    if libc is None or not wanted:
        _log.warning("the model's pages cannot be held: the system has no mlock")
        return False
    _raise_limit()
    for begin, end in wanted:
        if libc.mlock(begin, end - begin):
            why = os.strerror(ctypes.get_errno())
            most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] >> 20
            _log.warning(
                "the model's pages cannot be held: %s (ulimit -l is %d MB; LimitMEMLOCK= of systemd)", why, most
            )
            return False
    return True


def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def _libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    except (OSError, AttributeError):
        return None
    return libc
