"""What share of the time the engine may compute, by how hot, throttled or low on battery the machine is.

Law: pure; a function of readings and their times. The duty falls in a few steps, about as fast as silicon warms up. It
rises slowly, and only after conditions have been good for a while. Between the two is a band in which nothing changes.
"""

from __future__ import annotations

from llmaas.frozen import frozen

FLOOR = 0.2
"""Least duty. With less, calls would hardly ever end."""
_WARM, _HOT = 10.0, 0.0
"""Degrees below the limit at which the kernel throttles: at _WARM the duty begins to fall, at _HOT it is FLOOR."""
_THROTTLED = 0.9
"""A CPU that may not reach this share of its frequency is held back by heat or power."""
_BATTERY_HIGH, _BATTERY_LOW = 0.3, 0.1
"""Charge at which the duty begins to fall, and at which it is FLOOR."""
_DOWN, _UP = 0.2, 0.05
"""Largest step of the duty in each direction."""
_BAND = 0.1
"""A smaller difference changes nothing, unless the target is an end of the range."""
_EVERY_S = 2.0
"""Least time between two steps."""
_HOLD_S = 10.0
"""Least time between a step down and the next step up."""


@frozen
class ThermalReading:
    """What the machine reports of heat and power; None for what it does not report.

    ``temperature`` and ``limit`` are in degrees Celsius, of the zone that is closest to its limit; ``zone`` is its
    name. ``speed`` is the share of its frequency that the most restricted CPU may use. ``battery`` is the charge that
    is left (0 .. 1), and ``discharging`` says whether the battery is being emptied.
    """

    temperature: float | None = None
    limit: float | None = None
    zone: str = ""
    speed: float | None = None
    battery: float | None = None
    discharging: bool = False


class DutyPolicy:
    """``duty`` is the share of the time (FLOOR .. 1), ``why`` its reason: "", "heat", "throttled" or "battery".

    >>> policy = DutyPolicy()
    >>> hot = ThermalReading(temperature=97.0, limit=95.0)
    >>> [policy.on_reading(hot, now) for now in (0.0, 2.0)], policy.why
    ([0.8, 0.6000000000000001], 'heat')
    """

    def __init__(self) -> None:
        self.duty = 1.0
        self.why = ""
        self._stepped = -float("inf")
        """Second of the last step, and of the last step down."""
        self._lowered = -float("inf")

    def on_reading(self, reading: ThermalReading, now: float) -> float:
        """The duty after a reading at second ``now``. It moves by at most one step every two seconds."""
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
    """The duty that this reading alone asks for, and the reason."""
    found = [(1.0, "")]
    if reading.temperature is not None and reading.limit is not None:
        found.append((_between(reading.limit - reading.temperature, _HOT, _WARM), "heat"))
    if reading.speed is not None and reading.speed < _THROTTLED:
        found.append((max(FLOOR, reading.speed), "throttled"))
    if reading.battery is not None and reading.discharging:
        found.append((_between(reading.battery, _BATTERY_LOW, _BATTERY_HIGH), "battery"))
    return min(found)


def _between(value: float, low: float, high: float) -> float:
    """FLOOR at ``low`` and below, 1 at ``high`` and above, linear between."""
    return FLOOR + (1.0 - FLOOR) * min(1.0, max(0.0, (value - low) / (high - low)))
