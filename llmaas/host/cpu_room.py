"""How many CPUs this process could have had of late: those it used, and those that nobody used.

Law: it never fails: where the system does not tell how busy CPUs are, as in an Android app, nothing is known.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from llmaas.clock import Clock

STAT = Path("/proc/stat")
"""For each CPU a line with its time in ticks, by what it was used for: proc_stat(5)."""
_IDLE, _IOWAIT = 4, 5
_SOONEST_S = 0.1
"""A tick is 10 ms: less time says little."""
_STALE_S, _WORKED = 1.0, 0.5
"""An average over more than a second in which this process used less than half a CPU says little of now: another
program may have ended, or begun, since."""
_LOOKS, _BETWEEN_S = 8, 1e-3
"""How often it is counted at most who runs at this moment, until nobody else does: threads of a computation that has
just ended spin for milliseconds."""


class CpuRoom:
    """``read`` on one thread, whose CPUs are looked at."""

    def __init__(self, clock: Clock, stat: Path = STAT) -> None:
        self._clock, self._stat = clock, stat
        self._before = clock.now(), self._idle_s(), _used_s()

    def read(self) -> float | None:
        """CPUs, on average since the last call that told, or since this was made; None if it is not known.

        If this process did little since then: CPUs that nobody else uses at this moment.
        """
        now, idle, used = self._clock.now(), self._idle_s(), _used_s()
        then, idle_before, used_before = self._before
        elapsed = now - then
        if idle is None or idle_before is None or elapsed < _SOONEST_S:
            return None
        self._before = now, idle, used
        if elapsed >= _STALE_S and used - used_before < _WORKED * elapsed and (free := self._free()) is not None:
            return free
        return (idle - idle_before + used - used_before) / elapsed

    def _idle_s(self) -> float | None:
        """Seconds that its CPUs have been idle so far."""
        try:
            return idle_s(self._stat.read_text(), os.sched_getaffinity(0))
        except (OSError, AttributeError, ValueError, IndexError):
            return None

    def _free(self) -> float | None:
        """CPUs that no other thread of the system uses now; None if that is not told, or not of these CPUs alone."""
        others = math.inf
        for i in range(_LOOKS):
            if i:
                time.sleep(_BETWEEN_S)
            try:
                lines = self._stat.read_text().splitlines()
            except OSError:
                return None
            running = [int(line.split()[1]) for line in lines if line.startswith("procs_running ")]
            if not running:
                return None
            others = min(others, max(0, running[0] - 1))  # one of them is this thread
            if not others:
                break
        cpus = sum(line.startswith("cpu") for line in lines) - 1  # the first is of all
        return float(max(0, cpus - others)) if cpus == len(os.sched_getaffinity(0)) else None


def _used_s() -> float:
    """Seconds of CPU time that this process has used so far."""
    used = os.times()
    return used.user + used.system


def idle_s(stat: str, cpus: set[int]) -> float:
    """Seconds that these CPUs have been idle since the system was started. Raises ValueError or IndexError for a text
    that does not tell.

    >>> idle_s("cpu  9 9 9 900 9\\ncpu0 1 1 1 250 50 0\\ncpu1 1 1 1 600 0 0\\n", {0})
    3.0
    """
    names = {f"cpu{n}" for n in cpus}
    ticks: list[int] = []
    for line in stat.splitlines():
        if not line.startswith("cpu"):
            break  # those lines come first
        fields = line.split()
        if fields[0] in names:
            ticks.append(int(fields[_IDLE]) + int(fields[_IOWAIT]))
    if not ticks:
        raise ValueError("none of these CPUs")
    return sum(ticks) / float(os.sysconf("SC_CLK_TCK"))
