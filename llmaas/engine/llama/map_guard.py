"""Keeps the process alive when a mapped file of the model is cut, or a sector of it cannot be read, during a step.

Law: what was computed with a page that was missing is not used: whoever computed asks ``hit`` afterwards.

The kernel says so by a signal (SIGBUS) to the thread that touches the page, and without a handler that is the end of
the process. The handler, in C, puts a page of zeros there (``_map_guard.c``). Where it was not built, or the system
does not tell what is mapped where (/proc/self/maps), nothing is guarded.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llmaas.native import load_library

_log = logging.getLogger(__name__)
_VERSION = 1
"""Of ``_map_guard.c``; a library left over from another version is not used."""
_MAPS = Path("/proc/self/maps")


class Faults(NamedTuple):
    """A page was missing if the C function at ``address`` does not return ``known``."""

    address: int
    known: int


class MapGuard:
    """Guards what is mapped of some files now, until ``remove``."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._library = _library()
        self._numbers: list[int] = []
        if self._library is None:
            _log.info("the guard of mapped files was not built: a model file that is cut can end the process")
            return
        for begin, end in mapped(paths):
            number = int(self._library.guard_add(begin, end))
            if number >= 0:
                self._numbers.append(number)
        self._faults = int(self._library.guard_faults())

    @property
    def active(self) -> bool:
        """Whether anything is guarded."""
        return bool(self._numbers)

    def hit(self) -> bool:
        """Whether a guarded page was missing since this guard was made."""
        return self._library is not None and int(self._library.guard_faults()) != self._faults

    @property
    def faults(self) -> Faults | None:
        """How to ask ``hit`` without Python; None where nothing is guarded."""
        if self._library is None:
            return None
        address = ctypes.cast(self._library.guard_faults, ctypes.c_void_p).value
        return None if address is None else Faults(address, self._faults)

    def remove(self) -> None:
        """To be called when nothing is mapped any more. Idempotent."""
        while self._numbers and self._library is not None:
            self._library.guard_remove(self._numbers.pop())


def mapped(paths: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """Addresses, from the first to behind the last, where these files are mapped."""
    names = {os.path.realpath(path) for path in paths}
    try:
        lines = os.fsdecode(_MAPS.read_bytes()).splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(maxsplit=5)  # addresses, mode, offset, device, inode, path
        if len(fields) == 6 and fields[5] in names:
            begin, end = fields[0].split("-")
            yield int(begin, 16), int(end, 16)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_library(__file__, "_map_guard", lambda library: bool(library.guard_version() == _VERSION))
    if library is not None:
        library.guard_add.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
        library.guard_faults.restype = ctypes.c_int64
    return library
