"""Memory for the bodies of large frames, which is used again.

Law: memory is given again only when nobody views it any more. What lies idle is bounded, and goes back to the system
when no large frame has come for a while.

New memory costs more than the copy of what is received into it: each of its pages is a fault, is cleared by the kernel,
and by Python once more. Of an import that was a seventh of all processor time.
"""

from __future__ import annotations

import asyncio
import ctypes
import weakref
from collections import deque

IDLE_S = 1.0
"""Seconds after the last large frame within which idle memory goes back."""
MOST_IDLE = 8 << 20
"""Bytes that lie idle at most."""
LEAST = 1 << 20
"""Bytes of a body that is worth it: smaller memory ``malloc`` keeps by itself."""
_STEP = LEAST // 4


class FrameMemory:
    """For one event loop; views may end on any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle = deque[bytearray]()
        self._used = False
        """Whether memory was taken since ``_let_go`` looked last."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle_bytes(self) -> int:
        return sum(map(len, list(self._idle)))

    def take(self, nbytes: int) -> memoryview:
        """``nbytes`` of any values. Whoever gets them overwrites all before another sees any. At most a quarter more is
        taken for them, so that requests of much the same length use the same memory."""
        if nbytes < LEAST:
            return memoryview(bytearray(nbytes))
        size = -(-nbytes // _STEP) * _STEP
        memory = self._found(size) or bytearray(size)
        # An object of its own, which all views of the memory keep alive, and whose end can be watched.
        watched = (ctypes.c_ubyte * len(memory)).from_buffer(memory)
        weakref.finalize(watched, self._give_back, memory).atexit = False
        self._used = True
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_S, self._let_go)
        return memoryview(watched).cast("B")[:nbytes]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle.clear()

    def _found(self, size: int) -> bytearray | None:
        """Idle memory of so many bytes, or few more."""
        for _ in range(len(self._idle)):
            memory = self._idle.popleft()
            if size <= len(memory) <= size + _STEP:
                return memory
            self._idle.append(memory)
        return None

    def _give_back(self, memory: bytearray) -> None:
        if self._timer is not None and self.idle_bytes + len(memory) <= MOST_IDLE:
            self._idle.append(memory)

    def _let_go(self) -> None:
        used, self._used = self._used, False
        self._timer = self._loop.call_later(IDLE_S, self._let_go) if used else None
        if not used:
            self._idle.clear()
