"""Memory for state blobs that is used again and again.

Law: safe on any thread. A buffer is used again only when the last view of it is gone.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np

from llmaas.kv_arrays import Bytes

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
"""By default Python maps memory that forks could share, whose pages take half as long again to make, and to free."""


class Buffers:
    """A free list of blocks of ``size`` bytes, which keeps at most ``spare_bytes``.

    Fresh memory costs a page fault for each page: the first write to a chunk in it takes many times as long as the
    next one. So a buffer of up to ``size`` bytes lives in a block, which returns to the list when the last view of the
    buffer is gone. The part of a block that no buffer has needed is never touched, and takes no memory. Larger buffers
    are fresh memory.
    """

    def __init__(self, size: int, spare_bytes: int) -> None:
        self._size = size
        self._most = spare_bytes // size
        self._spare: deque[mmap.mmap] = deque()

    def take(self, size: int) -> Bytes:
        """A buffer of ``size`` bytes. Its content is undefined."""
        if size > self._size:
            return np.empty(size, np.uint8)
        try:
            block = self._spare.pop()
        except IndexError:
            block = mmap.mmap(-1, self._size, flags=_PRIVATE)
        # Every view has this array as its base, because numpy looks through arrays only: when it ends, all are gone.
        buffer: Bytes = np.frombuffer(block, np.uint8, count=size)
        weakref.finalize(buffer, self._recycle, block).atexit = False
        return buffer

    def _recycle(self, block: mmap.mmap) -> None:
        if len(self._spare) < self._most:
            self._spare.append(block)
