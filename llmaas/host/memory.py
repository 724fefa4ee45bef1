"""How short memory is, as Linux says it: PSI, control groups (v1 and v2), and the machine as a whole.

Law: it reads /proc and /sys and decides nothing. What they do not say is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmaas.frozen import frozen
from llmaas.policies.pool_budget import MemoryReading

ROOT = Path("/")
_NO_LIMIT = 1 << 60
"""Bytes. Version 1 of control groups shows a number above this for "no limit"."""


@frozen
class _Names:
    """The file names of one version of control groups, and its name for the page cache that can be freed at no harm."""

    limits: tuple[str, ...]
    used: str
    cache: str


_V2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


@frozen
class CgroupLimit:
    """A limit on memory and what is free under it, both in bytes. The machine's RAM counts as the outermost group's."""

    nbytes: int
    free: int
    whose: str
    """"machine" or "cgroup"."""


def limits(root: Path = ROOT) -> Iterator[CgroupLimit]:
    """The machine's RAM, then every limit of this process's control groups and of the groups that contain them."""
    found = meminfo(root)
    if "MemTotal" in found and "MemAvailable" in found:
        yield CgroupLimit(found["MemTotal"], found["MemAvailable"], "machine")
    for group, names in _groups(root):
        for folder in (group, *group.parents):
            known = [n for name in names.limits if (n := _number(folder / name)) is not None and n < _NO_LIMIT]
            used = _number(folder / names.used)
            if known and used is not None:
                cache = _fields(folder / "memory.stat").get(names.cache, 0)
                yield CgroupLimit(min(known), max(0, min(known) - max(0, used - cache)), "cgroup")


def meminfo(root: Path = ROOT) -> dict[str, int]:
    """The fields of /proc/meminfo in bytes; empty if there is no such file."""
    return {name.rstrip(":"): n * 1024 for name, n in _fields(root / "proc/meminfo").items()}


def stall_seconds(root: Path = ROOT) -> float | None:
    """Seconds since boot in which some task waited for memory (PSI, Documentation/accounting/psi.rst)."""
    try:
        line = (root / "proc/pressure/memory").read_text("ascii").split("\n")[0]
        return int(line.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):
        return None


class MemoryGauge:
    """Takes readings one after another; each tells the share of stalled time since the one before."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._last: tuple[float, float] | None = None
        """Time and stalled seconds of the last reading."""

    def read(self, now: float) -> MemoryReading:
        """The state of memory at second ``now``: stalls since the last reading, and the limit that has least free."""
        tight = min(limits(self._root), key=lambda limit: limit.free, default=None)
        stalled = self._stalled(now)
        if tight is None:
            return MemoryReading(stalled)
        return MemoryReading(stalled, tight.nbytes, tight.free, tight.whose)

    def _stalled(self, now: float) -> float | None:
        total = stall_seconds(self._root)
        last, self._last = self._last, None if total is None else (now, total)
        if total is None or last is None or now <= last[0]:
            return None
        return min(1.0, max(0.0, (total - last[1]) / (now - last[0])))


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The folders of the control groups that this process is in and that may limit memory."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield root / "sys/fs/cgroup" / path.lstrip("/"), _V2
        elif "memory" in controllers.split(","):
            yield root / "sys/fs/cgroup/memory" / path.lstrip("/"), _V1


def _fields(path: Path) -> dict[str, int]:
    """The fields of a file with lines "name number ..."; empty if it cannot be read."""
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return {}
    words = (line.split() for line in lines)
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None
