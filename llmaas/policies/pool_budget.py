"""How much RAM the POOL may have now, by what the machine says.

Law: the budget shrinks at once and grows back slowly. Two signals shrink it: little room left under the tightest memory
limit (a control group's, or the machine's), which says how much to give back; and tasks stalled on memory (Linux PSI),
which does not, so a quarter goes at a time. It does not oscillate: it grows only as far as twice the margin that makes
it shrink stays free, and each shrink that follows upon a growth doubles the time before the next, up to an hour.
"""

from __future__ import annotations

from dataclasses import dataclass

STALLED = 0.10
"""Shrink when some task waited for memory so much of the time. systemd-oomd's and lmkd's defaults are of this order."""
_CALM = 0.01
"""Grow only below this."""
_KEEP = 3 / 4
"""Of what the POOL holds, after a reading with stalls."""
_FLOOR = 1 / 16
"""Of the configured budget: below it nothing could pass through the POOL to DISK, and all would be recomputed."""
_STEP = 1 / 16
"""Of the configured budget: how much it grows at a time."""
_PACE_S = 10.0
"""Between two steps of growth."""
_HOLD_S = 30.0
_LONGEST_HOLD_S = 3600.0
_MARGIN = 64 << 20
"""Bytes to leave free under a limit; a sixteenth of the limit if that is less."""


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """What the machine says of its memory; None where it does not.

    ``stalled``: share of the time since the last reading in which some task waited for memory. ``limit`` and ``free``:
    bytes, of the limit with the least room; ``whose`` it is: "cgroup" or "machine".
    """

    stalled: float | None = None
    limit: int | None = None
    free: int | None = None
    whose: str = ""


class PoolBudget:
    """``nbytes`` is the POOL's budget now, ``why`` it is that: "configured", "pressure", "cgroup" or "machine"."""

    def __init__(self, configured: int) -> None:
        self.configured = configured
        self.nbytes = configured
        self.why = "configured"
        self._hold = _HOLD_S
        self._grown = False
        """Since the last shrink."""
        self._shrunk_at = -float("inf")
        self._grown_at = -float("inf")

    def configure(self, nbytes: int) -> int:
        """An operator's word: it holds now, whatever was before. The budget."""
        self.configured = self.nbytes = nbytes
        self.why = "configured"
        self._hold, self._grown = _HOLD_S, False
        return nbytes

    def on_reading(self, reading: MemoryReading, used: int, now: float) -> int:
        """The budget after a reading, with ``used`` bytes in the POOL at second ``now``."""
        used = min(used, self.nbytes)
        target, why = self.nbytes, self.why
        if reading.stalled is not None and reading.stalled >= STALLED:
            target, why = int(used * _KEEP), "pressure"
        if (room := _room(reading)) is not None and room < 0 and used + room < target:
            target, why = used + room, reading.whose
        target = max(target, int(self.configured * _FLOOR))
        if target < self.nbytes:
            self._shrink(target, why, now)
        elif self._may_grow(reading, now):
            self._grow(reading, used, now)
        return self.nbytes

    def _shrink(self, target: int, why: str, now: float) -> None:
        if now - self._shrunk_at > 2 * _LONGEST_HOLD_S:
            self._hold = _HOLD_S
        elif self._grown:
            self._hold = min(2 * self._hold, _LONGEST_HOLD_S)
        self.nbytes, self.why = target, why
        self._shrunk_at, self._grown = now, False

    def _may_grow(self, reading: MemoryReading, now: float) -> bool:
        if reading.stalled is not None and reading.stalled >= _CALM:
            if reading.stalled >= STALLED:
                self._shrunk_at = now  # at its floor, and still not enough
            return False
        rested = now - self._shrunk_at >= self._hold and now - self._grown_at >= _PACE_S
        return self.nbytes < self.configured and rested

    def _grow(self, reading: MemoryReading, used: int, now: float) -> None:
        most = min(self.configured, self.nbytes + max(1, int(self.configured * _STEP)))
        if (room := _room(reading)) is not None and reading.limit is not None:
            most = min(most, used + room - _margin(reading.limit))  # when the POOL is full, twice the margin is free
        if most > self.nbytes:
            self.nbytes, self._grown, self._grown_at = most, True, now
            if most == self.configured:
                self.why = "configured"


def _margin(limit: int) -> int:
    return min(_MARGIN, limit // 16)


def _room(reading: MemoryReading) -> int | None:
    """Bytes free beyond the margin; negative: so many are missing."""
    if reading.limit is None or reading.free is None:
        return None
    return reading.free - _margin(reading.limit)
