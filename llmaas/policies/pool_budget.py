"""How many bytes of RAM the POOL may take now, by what the machine reports of its memory.

Law: pure. The budget shrinks at once and grows slowly. Two signals shrink it: little room under the tightest memory
limit (of a control group or of the machine), which says how many bytes to give back; and tasks that stall on memory
(Linux PSI), which does not, so a quarter of the POOL goes at a time.

It does not oscillate. It grows only as far as leaves twice the margin free that makes it shrink. And each shrink that
follows a growth doubles the time before the next growth, up to an hour.
"""

from __future__ import annotations

from llmaas.frozen import frozen

STALLED = 0.10
"""Shrink when some task waited for memory this share of the time. systemd-oomd and lmkd have defaults of this order."""
_CALM = 0.01
"""Grow only while tasks stall less than this share of the time."""
_KEEP = 3 / 4
"""Share of the POOL's bytes that is kept after a reading with stalls."""
_FLOOR = 1 / 16
"""Least budget, as a share of the configured one. With less, nothing could pass through the POOL to DISK, and
everything would be recomputed."""
_STEP = 1 / 16
"""Growth at a time, as a share of the configured budget."""
_PACE_S = 10.0
"""Least time between two steps of growth."""
_HOLD_S = 30.0
"""Least time between a shrink and growth, at first."""
_LONGEST_HOLD_S = 3600.0
_MARGIN = 64 << 20
"""Bytes to leave free under a limit; a sixteenth of the limit if that is less."""


@frozen
class MemoryReading:
    """What the machine reports of its memory; None for what it does not report.

    ``stalled``: share of the time since the last reading in which some task waited for memory. ``limit`` and ``free``:
    bytes, of the limit with the least room. ``whose`` limit that is: "cgroup" or "machine".
    """

    stalled: float | None = None
    limit: int | None = None
    free: int | None = None
    whose: str = ""


class PoolBudget:
    """``nbytes`` is the POOL's budget now, ``why`` its reason: "configured", "pressure", "cgroup" or "machine".

    >>> budget = PoolBudget(configured=1600)
    >>> budget.on_reading(MemoryReading(stalled=0.3), used=1000, now=0.0)
    750
    >>> budget.why
    'pressure'
    >>> budget.on_reading(MemoryReading(stalled=0.0), used=700, now=31.0)  # calm for half a minute: one step of growth
    850
    """

    def __init__(self, configured: int) -> None:
        self.configured = configured
        self.nbytes = configured
        self.why = "configured"
        self._hold = _HOLD_S
        """Least time between a shrink and growth."""
        self._grown = False
        """Whether it has grown since the last shrink."""
        self._shrunk_at = -float("inf")
        self._grown_at = -float("inf")

    def configure(self, nbytes: int) -> int:
        """An operator sets the budget: it holds from now on, whatever happened before. Returns the budget."""
        self.configured = self.nbytes = nbytes
        self.why = "configured"
        self._hold, self._grown = _HOLD_S, False
        return nbytes

    def entitle(self, nbytes: int) -> int:
        """Another share of what several models have together. What the machine has said of its memory holds on.
        Returns the budget.

        >>> budget = PoolBudget(configured=1600)
        >>> budget.entitle(800), budget.entitle(1200)
        (800, 1200)
        """
        whole = self.nbytes == self.configured
        self.configured = nbytes
        self.nbytes = nbytes if whole else min(self.nbytes, nbytes)
        if self.nbytes == nbytes:
            self.why = "configured"
        return self.nbytes

    def on_reading(self, reading: MemoryReading, used: int, now: float) -> int:
        """The budget after a reading at second ``now``, with ``used`` bytes in the POOL."""
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
                self._shrunk_at = now  # at its floor, and that is still too much
            return False
        held = now - self._shrunk_at >= self._hold and now - self._grown_at >= _PACE_S
        return self.nbytes < self.configured and held

    def _grow(self, reading: MemoryReading, used: int, now: float) -> None:
        most = min(self.configured, self.nbytes + max(1, int(self.configured * _STEP)))
        if (room := _room(reading)) is not None and reading.limit is not None:
            most = min(most, used + room - _margin(reading.limit))  # when the POOL is full, twice the margin is free
        if most > self.nbytes:
            self.nbytes, self._grown, self._grown_at = most, True, now
            if most == self.configured:
                self.why = "configured"


def _margin(limit: int) -> int:
    """Bytes to leave free under ``limit``."""
    return min(_MARGIN, limit // 16)


def _room(reading: MemoryReading) -> int | None:
    """Bytes that are free beyond the margin; if negative, bytes that are missing. None if the machine says nothing."""
    if reading.limit is None or reading.free is None:
        return None
    return reading.free - _margin(reading.limit)
