"""How short memory is: Linux PSI, control groups (v1 and v2), and the machine as a whole.

Law: it reads /proc and /sys and decides nothing. What they do not say is None, never a guess.

``PressureWatcher`` is a thread that reads every two seconds, and at once when the kernel says that tasks stall: a PSI
trigger (Documentation/accounting/psi.rst) where one may be set, which since Linux 6.5 needs no privilege.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmaas.policies.pool_budget import STALLED, MemoryReading

log = logging.getLogger(__name__)

ROOT = Path("/")
_NO_LIMIT = 1 << 60
"""What v1 shows for "none" is a number beyond this."""
_EVERY_S = 2.0
_SOONEST_S = 0.5
"""Between two readings: shares of a shorter time say little."""
_WINDOW_US = 2_000_000
"""Unprivileged triggers must have windows of a multiple of two seconds."""


# -- readings -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Names:
    """What a version of control groups calls its files, and the cache that it can take back without harm."""

    limits: tuple[str, ...]
    used: str
    cache: str


_V2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


@dataclass(frozen=True, slots=True)
class CgroupLimit:
    """Bytes: a limit, and what is free under it."""

    nbytes: int
    free: int
    whose: str


def limits(root: Path = ROOT) -> Iterator[CgroupLimit]:
    """The machine's RAM, then every limit of the control groups that this process is in, at whatever level above it."""
    found = meminfo(root)
    if "MemTotal" in found and "MemAvailable" in found:
        yield CgroupLimit(found["MemTotal"], found["MemAvailable"], "machine")
    for group, names in _groups(root):
        for place in (group, *group.parents):
            known = [n for name in names.limits if (n := _number(place / name)) is not None and n < _NO_LIMIT]
            used = _number(place / names.used)
            if known and used is not None:
                cache = _fields(place / "memory.stat").get(names.cache, 0)
                yield CgroupLimit(min(known), max(0, min(known) - max(0, used - cache)), "cgroup")


def meminfo(root: Path = ROOT) -> dict[str, int]:
    """/proc/meminfo in bytes; empty if there is none."""
    return {name.rstrip(":"): n * 1024 for name, n in _fields(root / "proc/meminfo").items()}


def stall_seconds(root: Path = ROOT) -> float | None:
    """Seconds since boot in which some task waited for memory."""
    try:
        line = (root / "proc/pressure/memory").read_text("ascii").split("\n")[0]
        return int(line.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):
        return None


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
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
    """A file of lines "name number ..."."""
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


class MemoryGauge:
    """Readings, one after another."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._last: tuple[float, float] | None = None

    def read(self, now: float) -> MemoryReading:
        """What the machine says at second ``now``; stalls are those since the last reading."""
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


# -- the watcher --------------------------------------------------------------------------------


class PressureWatcher:
    """Tells ``heard`` of readings, on a thread of its own, until ``close``."""

    def __init__(
        self, heard: Callable[[MemoryReading], object], root: Path = ROOT, *, every_s: float = _EVERY_S
    ) -> None:
        self._heard, self._gauge, self._every = heard, MemoryGauge(root), every_s
        self._wake_r, self._wake_w = os.pipe()
        self._trigger = _set_trigger(root / "proc/pressure/memory")
        self._thread = threading.Thread(target=self._run, name="pressure", daemon=True)
        self._thread.start()

    @property
    def prompt(self) -> bool:
        """Whether the kernel says so when tasks stall, rather than being asked."""
        return self._trigger is not None

    def close(self) -> None:
        os.write(self._wake_w, b"x")
        self._thread.join()
        for fd in (self._wake_r, self._wake_w, self._trigger):
            if fd is not None:
                os.close(fd)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        if self._trigger is not None:
            poll.register(self._trigger, select.POLLPRI)
        rest = select.poll()
        rest.register(self._wake_r, select.POLLIN)
        while True:
            self._heard(self._gauge.read(time.monotonic()))
            if rest.poll(min(_SOONEST_S, self._every) * 1000):
                return
            if any(fd == self._wake_r for fd, _ in poll.poll(max(0.0, self._every - _SOONEST_S) * 1000)):
                return


def _set_trigger(path: Path) -> int | None:
    """A file that polls POLLPRI when tasks have stalled for long; None where the kernel does not allow it."""
    fd = None
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(fd, f"some {int(STALLED * _WINDOW_US)} {_WINDOW_US}\0".encode())
    except OSError as e:
        log.debug("no PSI trigger, memory is looked at every %g s: %s", _EVERY_S, e)
        if fd is not None:
            os.close(fd)
        return None
    return fd
