"""The one door to the time of day.

Law: nothing else in llmaas reads a clock. Whoever needs the time is given a ``Clock`` or the time
itself, so that tests and replays run in a time of their own.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings, both in seconds."""

    def now(self) -> float:
        """Monotonic: for durations, deadlines and ageing; its zero means nothing."""

    def wall(self) -> float:
        """Since the Unix epoch: for what is stored and shown; it may jump."""


class RealClock:
    """The machine's clocks."""

    __slots__ = ()

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class ManualClock:
    """Stands still until ``advance``."""

    __slots__ = ("_now", "_wall")

    def __init__(self, now: float = 0.0, wall: float = 1_700_000_000.0) -> None:
        self._now = now
        self._wall = wall

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Both readings move on by ``seconds``. Raises ValueError if that is negative."""
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds}")
        self._now += seconds
        self._wall += seconds
