"""The watcher of memory pressure reads again and again, by the clock that it is given, until it is closed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llmaas.clock import ManualClock
from llmaas.host.pressure import PressureWatcher
from llmaas.policies.pool_budget import MemoryReading
from tests.host.test_memory import MIB, machine, psi


def test_the_watcher_tells_again_and_again_until_it_is_closed(tmp_path: Path) -> None:
    root, clock = machine(tmp_path), ManualClock()
    psi(root, 0)
    readings, twice = list[MemoryReading](), threading.Event()

    def on_reading(reading: MemoryReading) -> None:
        readings.append(reading)
        clock.advance(2.0)
        psi(root, 500_000 * len(readings))
        if len(readings) == 2:
            twice.set()

    watcher = PressureWatcher(on_reading, root, every_s=0.05, clock=clock)
    assert twice.wait(20)
    watcher.close()
    assert readings[0].free == 6144 * MIB
    assert (readings[0].stalled, readings[1].stalled) == (None, pytest.approx(0.25))
    assert "pressure" not in [thread.name for thread in threading.enumerate()]


def test_this_machine_says() -> None:
    readings, once = list[MemoryReading](), threading.Event()
    watcher = PressureWatcher(lambda reading: (readings.append(reading), once.set()))
    assert once.wait(20)
    watcher.close()
    assert readings[0].limit and 0 <= (readings[0].free or 0) <= readings[0].limit
