"""A time within which a peer must do something, counted only while this process runs.

Law: a peer is never blamed for time in which this process stood still: Android freezes apps in the background, a shell
stops them (SIGSTOP), a machine without memory swaps. What the peer has sent meanwhile is looked at first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

STOOD_STILL_S = 1.0
"""A timer that fires so much later than it should have says that the event loop did not run."""


class PeerTimer:
    """Calls ``too_late`` after ``seconds``, unless it is cancelled before; they begin again if the loop stood still."""

    def __init__(self, seconds: float, too_late: Callable[[], object]) -> None:
        self._seconds, self._too_late = seconds, too_late
        self._loop = asyncio.get_running_loop()
        self._begin()

    def cancel(self) -> None:
        self._handle.cancel()

    def _begin(self) -> None:
        self._handle = self._loop.call_later(self._seconds, self._due)

    def _due(self) -> None:
        if self._loop.time() - self._handle.when() > STOOD_STILL_S:
            self._begin()
        else:
            self._too_late()
