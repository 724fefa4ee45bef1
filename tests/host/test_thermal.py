"""What the machine says of its heat and batteries, from files as kernels write them; and that the watcher tells it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llmaas.host.thermal import ThermalWatcher, read
from llmaas.policies.duty import ThermalReading


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", "ascii")


def zone(root: Path, n: int, name: str, millidegrees: object, **trips: int) -> None:
    folder = root / f"sys/class/thermal/thermal_zone{n}"
    put(folder / "type", name)
    put(folder / "temp", millidegrees)
    for i, (kind, at) in enumerate(trips.items()):
        put(folder / f"trip_point_{i}_type", kind)
        put(folder / f"trip_point_{i}_temp", at)


def supply(root: Path, name: str, **fields: object) -> None:
    for field, value in fields.items():
        put(root / "sys/class/power_supply" / name / field, value)


def test_the_zone_that_is_closest_to_its_limit_counts(tmp_path: Path) -> None:
    zone(tmp_path, 0, "acpitz", 60_000, critical=105_000)
    zone(tmp_path, 1, "cpu-thermal", 71_500, active=50_000, passive=80_000, critical=110_000)
    zone(tmp_path, 2, "wifi", 90_000)
    assert read(tmp_path) == ThermalReading(temperature=71.5, limit=80.0, zone="cpu-thermal")


def test_zones_without_a_sensor_and_trip_points_that_are_off_are_left_out(tmp_path: Path) -> None:
    zone(tmp_path, 0, "broken", -273_000, critical=100_000)
    zone(tmp_path, 1, "broken", 2_147_483_647, critical=100_000)
    zone(tmp_path, 2, "asleep", "", critical=100_000)
    zone(tmp_path, 3, "x86_pkg_temp", 50_000, passive=-274_000, critical=100_000)
    assert read(tmp_path) == ThermalReading(temperature=50.0, limit=100.0, zone="x86_pkg_temp")


def test_the_cpu_that_is_held_back_most_counts(tmp_path: Path) -> None:
    for policy, allowed in ((0, 1_800_000), (4, 1_200_000)):
        put(tmp_path / f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_max_freq", allowed)
        put(tmp_path / f"sys/devices/system/cpu/cpufreq/policy{policy}/cpuinfo_max_freq", 2_400_000)
    assert read(tmp_path) == ThermalReading(speed=0.5)


def test_the_machines_batteries_count_and_a_mouse_does_not(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online=0)
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity=20)
    supply(tmp_path, "BAT1", type="Battery", status="Not charging", capacity=80)
    supply(tmp_path, "hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity=3)
    assert read(tmp_path) == ThermalReading(battery=0.5, discharging=True)
    supply(tmp_path, "BAT0", status="Charging")
    assert not read(tmp_path).discharging


def test_a_machine_that_says_nothing_is_not_guessed_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path) == ThermalReading()
    ThermalWatcher(lambda reading: None, tmp_path).close()
    assert "tells neither" in caplog.text


def test_the_watcher_tells_again_and_again_until_it_is_closed(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu", 50_000, passive=90_000)
    readings, twice = list[ThermalReading](), threading.Event()

    def on_reading(reading: ThermalReading) -> None:
        readings.append(reading)
        zone(tmp_path, 0, "cpu", 95_000, passive=90_000)
        if len(readings) == 3:
            twice.set()

    watcher = ThermalWatcher(on_reading, tmp_path, every_s=0.05)
    assert twice.wait(20)
    watcher.close()
    assert (readings[0].temperature, readings[2].temperature) == (50.0, 95.0)
    assert "governor" not in [thread.name for thread in threading.enumerate()]
