"""A thread that reads how short memory is every two seconds, and at once when the kernel reports stalls.

Law: it decides nothing: each reading goes to a callback. The kernel reports by a PSI trigger
(Documentation/accounting/psi.rst) where one may be set, which since Linux 6.5 needs no privilege.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from llmaas.clock import Clock, RealClock
from llmaas.host.memory import ROOT, MemoryGauge
from llmaas.policies.pool_budget import STALLED, MemoryReading

log = logging.getLogger(__name__)

_EVERY_S = 2.0
_SOONEST_S = 0.5
"""Least time between two readings: the share of stalled time within less says little."""
_WINDOW_US = 2_000_000
"""The window of the trigger. Without privileges it must be a multiple of two seconds."""


class PressureWatcher:
    """Calls ``on_reading`` with each reading, on a thread of its own, until ``close``."""

    def __init__(
        self,
        on_reading: Callable[[MemoryReading], object],
        root: Path = ROOT,
        *,
        every_s: float = _EVERY_S,
        clock: Clock | None = None,
    ) -> None:
        self._on_reading, self._gauge, self._every = on_reading, MemoryGauge(root), every_s
        self._clock = clock or RealClock()
        self._wake_r, self._wake_w = os.pipe()
        self._trigger = _set_trigger(root / "proc/pressure/memory")
        self._thread = threading.Thread(target=self._run, name="pressure", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait for it."""
        os.write(self._wake_w, b"x")
        self._thread.join()
        for fd in (self._wake_r, self._wake_w, self._trigger):
            if fd is not None:
                os.close(fd)

    def _run(self) -> None:
        closing = select.poll()
        closing.register(self._wake_r, select.POLLIN)
        closing_or_stall = select.poll()
        closing_or_stall.register(self._wake_r, select.POLLIN)
        if self._trigger is not None:
            closing_or_stall.register(self._trigger, select.POLLPRI)
        while True:
            self._on_reading(self._gauge.read(self._clock.now()))
            if closing.poll(min(_SOONEST_S, self._every) * 1000):
                return
            ready = closing_or_stall.poll(max(0.0, self._every - _SOONEST_S) * 1000)
            if any(fd == self._wake_r for fd, _ in ready):
                return


def _set_trigger(path: Path) -> int | None:
    """A descriptor that polls POLLPRI when tasks have stalled for long; None where the kernel does not allow it."""
    fd = None
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(fd, f"some {int(STALLED * _WINDOW_US)} {_WINDOW_US}\0".encode())
    except OSError as e:
        log.debug("cannot set a PSI trigger; memory is read every %g s: %s", _EVERY_S, e)
        if fd is not None:
            os.close(fd)
        return None
    return fd
