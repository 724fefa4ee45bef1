"""Keeps llama.cpp's threads from sharing a CPU during a step, if it was built with GNU OpenMP.

Law: on the engine's thread only, and for the time of a step: whoever looks before or after sees threads that may run
anywhere. It only helps: where it cannot be done, the kernel decides.

Beside another busy program the kernel (6.18, two cores) wakes a thread on the core of the thread that wakes it, so both
threads take turns on one core while the other program has the other: they get little more than one core of the 1.33
that are due to them. On cores of their own they get 1.24 (docs/engine.md).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmaas.engine.llama.openmp import Parallel
from llmaas.native import load_library

_VERSION, _MOST = 1, 64
_library = load_library(__file__, "_apart", lambda lib: bool(lib.apart_version() == _VERSION))


class _Apart(ctypes.Structure):
    """``Apart`` of _apart.c."""

    _fields_ = (("next", ctypes.c_int), ("n", ctypes.c_int), ("cpus", ctypes.c_int * _MOST))


class ThreadsApart:
    """``parallel``: the address of the library's GOMP_parallel; None if llama.cpp is built without it."""

    def __init__(self, parallel: int | None, library: ctypes.CDLL | None = _library) -> None:
        self._parallel: Any = Parallel(parallel) if parallel is not None and library is not None else None
        self._begin, self._end = _addresses(library) if library is not None else (None, None)

    @contextmanager
    def during_step(self, n_threads: int) -> Iterator[None]:
        """Run the block with each of the threads of a step on a CPU of its own, if there are as many CPUs as threads.

        With more CPUs the kernel has a choice, and it knows which are quick and which are idle.
        """
        cpus = _cpus()
        if self._parallel is None or n_threads == 1 or len(cpus) != n_threads or n_threads > _MOST:
            yield
            return
        apart = _Apart(0, n_threads, (ctypes.c_int * _MOST)(*cpus))
        self._parallel(self._begin, ctypes.addressof(apart), n_threads, 0)
        try:
            yield
        finally:
            self._parallel(self._end, ctypes.addressof(apart), n_threads, 0)


def _addresses(library: ctypes.CDLL) -> tuple[int | None, int | None]:
    begin, end = (ctypes.cast(f, ctypes.c_void_p).value for f in (library.apart_begin, library.apart_end))
    return begin, end


def _cpus() -> list[int]:
    """Those that this thread may use; none where that is not told (outside Linux)."""
    try:
        return sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return []
