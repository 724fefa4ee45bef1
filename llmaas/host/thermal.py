"""Temperature, CPU throttling and battery of the machine, as Linux says them in sysfs.

Law: it reads /sys and decides nothing. What /sys does not say is None, never a guess.

It reads thermal zones with their trip points (Documentation/driver-api/thermal/sysfs-api.rst), the frequency that CPUs
may use against the highest that they can (admin-guide/pm/cpufreq.rst), and batteries (ABI/testing/sysfs-class-power).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from llmaas.policies.duty import ThermalReading

log = logging.getLogger(__name__)

ROOT = Path("/")
_EVERY_S = 2.0
_SANE = (-40.0, 150.0)
"""Degrees Celsius: zones without a sensor give values such as -273 or 0x7fffffff."""
_LIMITS = ("passive", "hot", "critical")
"""Types of trip points at which a machine slows down, or worse. The first of them that a zone has is its limit."""


def read(root: Path = ROOT) -> ThermalReading:
    """The state now. Of thermal zones, the one nearest to its limit counts; of CPUs, the most throttled one."""
    limit, temperature, zone = min(_zones(root), key=lambda found: found[0] - found[1], default=(None, None, ""))
    level, discharging = _battery(root)
    return ThermalReading(temperature, limit, zone, min(_speeds(root), default=None), level, discharging)


def _zones(root: Path) -> Iterator[tuple[float, float, str]]:
    """Limit and temperature in degrees Celsius, and name, of each zone that has both."""
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        temperature = _number(zone / "temp")
        limit = _limit(zone)
        if temperature is None or limit is None or not _SANE[0] < temperature / 1000 < _SANE[1]:
            continue
        yield limit, temperature / 1000, _text(zone / "type")


def _limit(zone: Path) -> float | None:
    trips: dict[str, float] = {}
    for kind in sorted(zone.glob("trip_point_*_type")):
        degrees = _number(kind.with_name(kind.name.removesuffix("type") + "temp"))
        name = _text(kind)
        if degrees is not None and 0.0 < degrees / 1000 < _SANE[1]:  # 0 and less: a trip point that is switched off
            trips[name] = min(degrees / 1000, trips.get(name, _SANE[1]))
    return next((trips[name] for name in _LIMITS if name in trips), None)


def _speeds(root: Path) -> Iterator[float]:
    """Of each frequency domain, the highest frequency allowed now as a share of the highest possible."""
    for policy in (root / "sys/devices/system/cpu/cpufreq").glob("policy*"):
        allowed, possible = _number(policy / "scaling_max_freq"), _number(policy / "cpuinfo_max_freq")
        if allowed and possible and possible > 0:
            yield min(1.0, max(0.0, allowed / possible))


def _battery(root: Path) -> tuple[float | None, bool]:
    """Mean level of the machine's own batteries (not those of mice and the like), and whether one is discharging."""
    levels, discharging = [], False
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        level = _number(supply / "capacity")
        if _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device" and level is not None:
            levels.append(min(1.0, max(0.0, level / 100)))
            discharging |= _text(supply / "status") == "Discharging"
    return (sum(levels) / len(levels) if levels else None), discharging


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:  # drivers refuse to be read while a device sleeps
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(int(_text(path)))
    except ValueError:
        return None


class ThermalWatcher:
    """Calls ``on_reading`` with a first reading at once, then with one every ``every_s`` seconds, on a thread of its
    own, until ``close``.
    """

    def __init__(
        self, on_reading: Callable[[ThermalReading], object], root: Path = ROOT, *, every_s: float = _EVERY_S
    ) -> None:
        self._on_reading, self._root, self._every = on_reading, root, every_s
        self._closing = threading.Event()
        if (first := read(root)) == ThermalReading():
            log.warning("the governor is on, but this machine tells neither temperatures nor frequencies nor a battery")
        on_reading(first)
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait for it."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            self._on_reading(read(self._root))
