"""Measures how long the daemon's event loop stood still, inside the daemon, for a program that reads it from outside.

A beat is due every ``BEAT_S`` on the loop. How much later it comes is how long the loop ran something else. On a busy
machine a beat is also late because the loop's thread had no CPU: that time is subtracted (``run_delay`` of Linux's
schedstat). What is left counts as frozen as far as the process computed meanwhile, on the loop's thread or on another
one that held the interpreter lock. The whole of it counts as stalled: it may also have waited for a file or a lock.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from dataclasses import astuple, dataclass
from pathlib import Path

BEAT_S = 0.005
_BOARD = struct.Struct("=6d")


@dataclass(frozen=True)
class Clocks:
    """Seconds: real time, time that the loop's thread waited for a CPU, CPU time of the process."""

    now: float
    waited: float
    computed: float


class ProcessClocks:
    """The clocks of a process whose loop is on its main thread; from inside, or from another process."""

    def __init__(self, pid: int) -> None:
        # Kept open: each system call gives up the interpreter lock, and may wait for it afterwards.
        self._schedstat = os.open(f"/proc/{pid}/task/{pid}/schedstat", os.O_RDONLY)
        self._cpu = ~pid << 3 | 2  # as clock_getcpuclockid(3) says

    def read(self) -> Clocks:
        _, waited, _ = os.pread(self._schedstat, 100, 0).split()
        return Clocks(time.monotonic(), int(waited) / 1e9, time.clock_gettime(self._cpu))

    def close(self) -> None:
        os.close(self._schedstat)


@dataclass(frozen=True)
class LoopReading:
    """Seconds: the longest that the loop was frozen and stalled since ``reset``, and how long the drain took."""

    frozen: float = 0.0
    stalled: float = 0.0
    drained: float = 0.0

    def with_beat(self, before: Clocks, now: Clocks) -> LoopReading:
        """The reading after a beat ``now`` that followed one at ``before``."""
        late = now.now - before.now - BEAT_S - (now.waited - before.waited)
        frozen = min(late, now.computed - before.computed)
        return LoopReading(max(self.frozen, frozen), max(self.stalled, late), self.drained)


class Board:
    """A file that two processes have mapped: the daemon writes its readings, and the clocks at the last beat."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_BOARD.size)
            self._map = mmap.mmap(file.fileno(), _BOARD.size)

    def write(self, reading: LoopReading, clocks: Clocks) -> None:
        _BOARD.pack_into(self._map, 0, *astuple(reading), *astuple(clocks))

    def last(self) -> tuple[LoopReading, Clocks]:
        values = _BOARD.unpack_from(self._map)
        return LoopReading(*values[:3]), Clocks(*values[3:])

    def read(self, pid: int) -> LoopReading:
        """What holds now: if the loop of the process stands still, the beat that is due comes at this moment."""
        clocks = ProcessClocks(pid)
        reading, before = self.last()
        try:
            return reading.with_beat(before, clocks.read())
        finally:
            clocks.close()

    def reset(self) -> None:
        self.write(LoopReading(), self.last()[1])

    def has_drained(self, seconds: float) -> None:
        reading, clocks = self.last()
        self.write(LoopReading(reading.frozen, reading.stalled, seconds), clocks)


class LoopProbe:
    """Beats on the running loop, which must be on the process's main thread, from ``start`` on."""

    def __init__(self, board: Board) -> None:
        self._board, self._clocks = board, ProcessClocks(os.getpid())
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        self._board.write(LoopReading(), self._clocks.read())
        self._loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        reading, before = self._board.last()
        now = self._clocks.read()
        self._board.write(reading.with_beat(before, now), now)
        self._loop.call_later(BEAT_S, self._beat)
