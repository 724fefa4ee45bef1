"""The clocks of the machine, and one for tests.

Law: no part of llmaas asks the operating system what time it is, except through ``RealClock``. A part that needs the
time is given a ``Clock`` or the time itself, so that tests and replays run in a time of their own.

Two parts use Python's ``time`` for something else than the time that passes in the service:
``kvchunks.store.cipher`` measures which cipher is faster on this CPU, and ``engine.llama.chat`` gives chat templates
the date.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings, both in seconds."""

    def now(self) -> float:
        """Monotonic time, for durations, deadlines and ageing. Its zero has no meaning."""

    def wall(self) -> float:
        """Time since the Unix epoch, for what is stored and shown. It may jump."""


def thread_cpu() -> float:
    """Seconds of CPU that the calling thread has used: what it took from others, not how long it waited."""
    return time.thread_time()


class RealClock:
    """The clocks of the operating system."""

    __slots__ = ()

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class ManualClock:
    """A clock that stands still until ``advance`` is called."""

    __slots__ = ("_now", "_wall")

    def __init__(self, now: float = 0.0, wall: float = 1_700_000_000.0) -> None:
        self._now = now
        self._wall = wall

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Move both readings on by ``seconds``. Raises ValueError if that is negative."""
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds}")
        self._now += seconds
        self._wall += seconds
