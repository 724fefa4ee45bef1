"""Frees dropped chunks a few at a time, and returns freed memory to the system.

Law: it owns what it is given to free; nobody else looks at it again.
"""

from __future__ import annotations

import ctypes
import time

from llmaas.kvchunks.codec.codec import CodedChunk
from llmaas.kvchunks.tiering.workers import Workers

_MANY = 32
"""Chunks. So many are not freed on the event loop, which has no time for that, but on the thread; then, malloc's free
memory goes back to the system after every so many.
"""
_AT_ONCE = 8
"""Chunks freed before other threads get their turn: freeing holds the GIL."""


class MemoryTrimmer:
    """A thread that frees chunks. ``free`` and ``trim`` return at once."""

    def __init__(self) -> None:
        self._thread = Workers(1, "free")

    def close(self) -> None:
        """Return when everything is freed."""
        self._thread.shutdown(wait=True)

    def free(self, dropped: list[CodedChunk | None]) -> None:
        """Free chunks: many on the thread, which also returns their memory to the system; few are freed here."""
        if len(dropped) >= _MANY:
            self._thread.submit(_free, dropped)

    def trim(self) -> None:
        """Return memory that has been freed to the system, soon: malloc keeps it for itself otherwise."""
        self._thread.submit(_free, [])


def _free(dropped: list[CodedChunk | None]) -> None:
    """Empty ``dropped``, a few at a time: freeing holds the GIL, and trimming holds malloc's lock."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others return memory by themselves
    while True:
        for _ in range(_MANY // _AT_ONCE):
            del dropped[-_AT_ONCE:]
            time.sleep(0)
        if trim is not None:
            trim(0)
        if not dropped:
            return
