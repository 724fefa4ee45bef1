"""How the service shares the machine: threads of the engine, and the share of the time that it may compute.

Law: it decides nothing: ``policies.thread_count`` and ``policies.duty`` do. Everything here but ``step`` and ``steps``
runs on the event loop, and ``crowded`` on either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from llmaas.clock import Clock
from llmaas.engine.adaptive_threads import AdaptiveThreads
from llmaas.engine.base import Engine
from llmaas.host.cpu_room import CpuRoom
from llmaas.host.time_slice import StepSlices
from llmaas.planner.events import DutyChanged
from llmaas.policies.duty import DutyPolicy, ThermalReading

log = logging.getLogger(__name__)


class HostShare:
    """``step`` and ``steps`` run steps as the engine's do, on its thread, with ``most_threads`` at most; None: always
    with as many threads as the engine was made with."""

    def __init__(self, engine: Engine, most_threads: int | None, clock: Clock) -> None:
        self._threads: AdaptiveThreads | None = None
        if most_threads is not None:
            self._threads = AdaptiveThreads(engine, most_threads, clock.now, CpuRoom(clock).read, StepSlices())
        self.step = self._threads.step if self._threads else engine.step
        self.steps = self._threads.steps if self._threads else engine.steps
        self._clock = clock
        self._duty = DutyPolicy()
        self._last_reading: ThermalReading | None = None

    def on_reading(self, reading: ThermalReading, dispatch: Callable[[DutyChanged], None]) -> None:
        """Take a reading of temperature, throttling and battery."""
        self._last_reading = reading
        before = self._duty.duty
        now = self._duty.on_reading(reading, self._clock.now())
        if now != before:
            log.log(logging.INFO if now < before else logging.DEBUG, "duty: %.2f -> %.2f, by %s", before, now, reading)
            dispatch(DutyChanged(now))

    @property
    def crowded(self) -> bool:
        """Whether other programs took CPUs of late that this one could have used, as far as it is known."""
        return self._threads is not None and self._threads.crowded

    @property
    def duty(self) -> float:
        """The share of the time that the engine may compute."""
        return self._duty.duty

    def snapshot(self) -> dict[str, object]:
        """Threads, and the duty and why it is what it is, as plain values."""
        governor: dict[str, object] = {"watched": self._last_reading is not None}
        if (reading := self._last_reading) is not None:
            fields = {
                "zone": reading.zone or None,
                "celsius": reading.temperature,
                "limit_celsius": reading.limit,
                "cpu_speed": reading.speed,
                "battery": reading.battery,
            }
            governor |= {"duty": self._duty.duty, "why": self._duty.why or "nothing"}
            governor |= {name: value for name, value in fields.items() if value is not None}
        return {"threads": self._threads.snapshot() if self._threads else "fixed", "governor": governor}
