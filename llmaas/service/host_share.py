"""How the service shares the machine: the engine's threads, and the share of the time it may compute.

Law: it decides nothing: ``policies.thread_count`` and ``policies.duty`` do. Everything here but ``step`` and ``steps``
runs on the event loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from llmaas.clock import Clock
from llmaas.engine.adaptive_threads import AdaptiveThreads
from llmaas.engine.base import Engine
from llmaas.planner.events import DutyChanged
from llmaas.policies.duty import DutyPolicy, ThermalReading

log = logging.getLogger(__name__)


class HostShare:
    """``step`` runs steps, on the engine's thread, with ``most`` threads at most; 0: their number is fixed."""

    def __init__(self, engine: Engine, most: int, clock: Clock) -> None:
        self._threads = AdaptiveThreads(engine, most, clock.now) if most else None
        self.step = self._threads.step if self._threads else engine.step
        self.steps = self._threads.steps if self._threads else engine.steps
        self._clock = clock
        self._governor = DutyPolicy()
        self._last_reading: ThermalReading | None = None

    def on_reading(self, reading: ThermalReading, dispatch: Callable[[DutyChanged], None]) -> None:
        """The machine has been looked at."""
        self._last_reading = reading
        before = self._governor.duty
        now = self._governor.on_reading(reading, self._clock.now())
        if now != before:
            log.log(logging.INFO if now < before else logging.DEBUG, "duty: %.2f -> %.2f, by %s", before, now, reading)
            dispatch(DutyChanged(now))

    def snapshot(self) -> dict[str, object]:
        """Threads, duty and why it is so, as plain values."""
        told: dict[str, object] = {"watched": self._last_reading is not None}
        if (reading := self._last_reading) is not None:
            found = {
                "zone": reading.zone or None,
                "celsius": reading.temperature,
                "limit_celsius": reading.limit,
                "cpu_speed": reading.speed,
                "battery": reading.battery,
            }
            told |= {"duty": self._governor.duty, "why": self._governor.why or "nothing"}
            told |= {name: value for name, value in found.items() if value is not None}
        return {"threads": self._threads.snapshot() if self._threads else "fixed", "governor": told}
