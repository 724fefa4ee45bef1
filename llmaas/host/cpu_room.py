"""How many CPUs this process could have had of late: those it used, and those that nobody used.

Law: it never fails: where the system does not tell how busy CPUs are, as in an Android app, nothing is known.
"""

from __future__ import annotations

import os
from pathlib import Path

from llmaas.clock import Clock

STAT = Path("/proc/stat")
"""For each CPU a line with its time in ticks, by what it was used for: proc_stat(5)."""
_IDLE, _IOWAIT = 4, 5
_SOONEST_S = 0.1
"""A tick is 10 ms: less time says little."""


class CpuRoom:
    """``read`` on one thread, whose CPUs are looked at."""

    def __init__(self, clock: Clock, stat: Path = STAT) -> None:
        self._clock, self._stat = clock, stat
        self._before = clock.now(), self._mine()

    def read(self) -> float | None:
        """CPUs, on average since the last call that told, or since this was made; None if it is not known."""
        now, mine = self._clock.now(), self._mine()
        then, before = self._before
        elapsed = now - then
        if mine is None or before is None or elapsed < _SOONEST_S:
            return None
        self._before = now, mine
        return (mine - before) / elapsed

    def _mine(self) -> float | None:
        """Seconds that this process has used so far, and that its CPUs have been idle."""
        try:
            idle = idle_s(self._stat.read_text(), os.sched_getaffinity(0))
        except (OSError, AttributeError, ValueError, IndexError):
            return None
        used = os.times()
        return idle + used.user + used.system


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
