"""How hot, throttled and low on battery the machine is, by Linux sysfs.

Law: it reads /sys and decides nothing. What that does not say is None, never a guess.

Read are thermal zones with their trip points (Documentation/driver-api/thermal/sysfs-api.rst), what frequency CPUs may
use of what they could (admin-guide/pm/cpufreq.rst), and batteries (ABI/testing/sysfs-class-power).
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
"""Degrees: zones without a sensor say things such as -273 or 0x7fffffff."""
_LIMITS = ("passive", "hot", "critical")
"""Types of trip points at which a machine slows down, or worse; the first of them that a zone has is its limit."""


def read(root: Path = ROOT) -> ThermalReading:
    """What the machine says now."""
    limit, temperature, zone = min(_zones(root), key=lambda found: found[0] - found[1], default=(None, None, ""))
    level, discharging = _battery(root)
    return ThermalReading(temperature, limit, zone, min(_speeds(root), default=None), level, discharging)


def _zones(root: Path) -> Iterator[tuple[float, float, str]]:
    """(limit, temperature, name) of each zone that says both."""
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
    for policy in (root / "sys/devices/system/cpu/cpufreq").glob("policy*"):
        allowed, possible = _number(policy / "scaling_max_freq"), _number(policy / "cpuinfo_max_freq")
        if allowed and possible and possible > 0:
            yield min(1.0, max(0.0, allowed / possible))


def _battery(root: Path) -> tuple[float | None, bool]:
    """Mean level of the machine's batteries (not of mice and the like), and whether one of them is being emptied."""
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
    """Tells ``heard`` of readings, on a thread of its own, until ``close``."""

    def __init__(
        self, heard: Callable[[ThermalReading], object], root: Path = ROOT, *, every_s: float = _EVERY_S
    ) -> None:
        self._heard, self._root, self._every = heard, root, every_s
        self._closing = threading.Event()
        if (first := read(root)) == ThermalReading():
            log.warning("the governor is on, but this machine tells neither temperatures nor frequencies nor a battery")
        heard(first)
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            self._heard(read(self._root))
