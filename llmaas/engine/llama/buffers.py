"""Memory for state blobs that is used again and again.

Law: safe on any thread. A buffer is used again only when the last view of it is gone.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np

from llmaas.engine.llama.state_blob import Bytes


class Buffers:
    """Memory for blobs, used again and again.

    Fresh memory costs a page fault every 4 KiB: the first write to a chunk in it takes many times as long as the
    next one. So blobs of up to ``size`` bytes live in blocks that come back when the last view of them is gone; at
    most ``spare_bytes`` wait for use. Safe on any thread.
    """

    def __init__(self, size: int, spare_bytes: int) -> None:
        self._size = size
        self._most = spare_bytes // size
        self._spare: deque[mmap.mmap] = deque()

    def take(self, size: int) -> Bytes:
        """A buffer of ``size`` bytes, with anything in it."""
        if size > self._size:
            return np.empty(size, np.uint8)
        try:
            block = self._spare.pop()
        except IndexError:
            block = mmap.mmap(-1, self._size)
        # The array is what every view has as its base, because numpy looks through arrays only: its end is theirs.
        buffer: Bytes = np.frombuffer(block, np.uint8, count=size)
        weakref.finalize(buffer, self._give_back, block).atexit = False
        return buffer

    def _give_back(self, block: mmap.mmap) -> None:
        if len(self._spare) < self._most:
            self._spare.append(block)
