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
_MUCH = 4 << 20
"""Bytes of chunks that were freed a few at a time. After so many, too, malloc's free memory goes back: chunks that are
read again lie elsewhere (``chunk_memory``), so that malloc may have no use for it for long.
"""
_AT_ONCE = 8
"""Chunks freed before other threads get their turn: freeing holds the GIL."""


class MemoryTrimmer:
    """A thread that frees chunks. ``free`` and ``trim`` return at once."""

    def __init__(self) -> None:
        self._thread = Workers(1, "free")
        self._freed = 0
        """Bytes since malloc's memory last went back."""

    def close(self) -> None:
        """Return when everything is freed."""
        self._thread.shutdown(wait=True)

    def free(self, dropped: list[CodedChunk | None]) -> None:
        """Free chunks: many on the thread, which also returns their memory to the system; few are freed here, and
        their memory is returned when it is much. Called by one thread."""
        self._freed += sum(len(chunk) for chunk in dropped if isinstance(chunk, bytes | bytearray))
        if len(dropped) >= _MANY or self._freed >= _MUCH:
            self._freed = 0
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
