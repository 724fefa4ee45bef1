"""Lets work in the background rest while a call waits for its first token.

Law: it reads no clock. Who rests is told how much rest it has left, so that a daemon that is never idle gets its work
done, too.

A thread of low CPU priority still holds a core, or the interpreter's lock, for some milliseconds at a time, and the
engine's threads wait for each other.
"""

from __future__ import annotations

import threading

REST_S = 0.05
"""Seconds of one rest."""


class Rest:
    """``told`` and ``take`` may be called on any thread."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._over.set()

    def told(self, resting: bool) -> None:
        """Whether there is to be rest from now on."""
        if resting:
            self._over.clear()
        else:
            self._over.set()

    def take(self, most: int) -> int:
        """Rest as long as is told, ``most`` times ``REST_S`` seconds at most; returns how many of those are left."""
        while most and not self._over.wait(REST_S):
            most -= 1
        return most
