"""What share of the time the engine may compute, by how hot, throttled or low on battery the machine is.

Law: a function of readings and times. It goes down in a few steps, as fast as silicon warms up, and comes back slowly
and only after things have been well for a while; between the two lies a band where nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOOR = 0.2
"""Least share: a call that never ends helps nobody."""
_WARM, _HOT = 10.0, 0.0
"""Degrees below the temperature at which the kernel throttles: from here on less, down to the floor."""
_THROTTLED = 0.9
"""A CPU that may not reach this share of its frequency is held back by heat or power."""
_BATTERY_HIGH, _BATTERY_LOW = 0.3, 0.1
_DOWN, _UP = 0.2, 0.05
"""Largest steps."""
_BAND = 0.1
"""A smaller difference changes nothing, unless it leads to an end of the range."""
_EVERY_S = 2.0
_HOLD_S = 10.0
"""Between a step down and the next one up."""


@dataclass(frozen=True, slots=True)
class ThermalReading:
    """What the machine says; None where it does not.

    ``temperature`` and ``limit``: degrees Celsius of the zone that is closest to its limit, ``zone`` its name.
    ``speed``: share of its frequency that the most held back CPU may use. ``battery``: share that is left;
    ``discharging``: whether it is being emptied.
    """

    temperature: float | None = None
    limit: float | None = None
    zone: str = ""
    speed: float | None = None
    battery: float | None = None
    discharging: bool = False


class DutyPolicy:
    """``duty`` is the share of the time, ``why`` it is that: "", "heat", "throttled" or "battery"."""

    def __init__(self) -> None:
        self.duty = 1.0
        self.why = ""
        self._stepped = -float("inf")
        self._lowered = -float("inf")

    def on_reading(self, reading: ThermalReading, now: float) -> float:
        """The duty after a reading at second ``now``; it moves by one step at most every two seconds."""
        target, why = _target(reading)
        if now - self._stepped < _EVERY_S:
            return self.duty
        far = abs(target - self.duty) >= _BAND or target in (FLOOR, 1.0)
        if target < self.duty and far:
            self.duty = max(target, self.duty - _DOWN)
            self.why, self._stepped, self._lowered = why, now, now
        elif target > self.duty and far and now - self._lowered >= _HOLD_S:
            self.duty = min(target, self.duty + _UP)
            self._stepped = now
        if self.duty == 1.0:
            self.why = ""
        return self.duty


def _target(reading: ThermalReading) -> tuple[float, str]:
    """The duty that a reading asks for by itself, and why."""
    found = [(1.0, "")]
    if reading.temperature is not None and reading.limit is not None:
        found.append((_between(reading.limit - reading.temperature, _HOT, _WARM), "heat"))
    if reading.speed is not None and reading.speed < _THROTTLED:
        found.append((max(FLOOR, reading.speed), "throttled"))
    if reading.battery is not None and reading.discharging:
        found.append((_between(reading.battery, _BATTERY_LOW, _BATTERY_HIGH), "battery"))
    return min(found)


def _between(value: float, low: float, high: float) -> float:
    """FLOOR at ``low`` and below, 1 at ``high`` and above, a line between."""
    return FLOOR + (1.0 - FLOOR) * min(1.0, max(0.0, (value - low) / (high - low)))
