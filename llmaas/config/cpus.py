"""How many CPUs this process may use: by its affinity, and by the quota of its control groups.

Law: it reads /proc and /sys and changes nothing. What they do not say is None, never a guess.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path("/")


def allowed_cpus() -> tuple[int, ...] | None:
    """The CPUs that this process may use; None on systems that do not say (only Linux does)."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs' worth of time that the tightest control group around this process may use, such as 1.5; None: no limit.

    Version 2 says it in cpu.max, version 1 in cpu.cfs_quota_us (Documentation/admin-guide/cgroup-v2.rst,
    scheduler/sched-bwc.rst).
    """
    found = [quota for folder, read in _groups(root) if (quota := read(folder)) is not None]
    return min(found, default=None)


def default_threads(n_cpus: int | None = None, root: Path = ROOT) -> int:
    """Threads for so many CPUs (None: all that this process may use), and no more than its quota keeps busy.

    A quota of 1.5 gives one thread: with two, the kernel stops both for a part of each period, and llama.cpp's threads
    wait for each other.
    """
    n = n_cpus or len(allowed_cpus() or ()) or os.cpu_count() or 1
    quota = cpu_quota(root)
    return n if quota is None else max(1, min(n, int(quota)))


def _groups(root: Path) -> Iterator[tuple[Path, Callable[[Path], float | None]]]:
    """The folders of the control groups that this process is in and of those that contain them, and how each is read.

    In a container the path of the group may be that of the host; the mount then shows the group itself at its top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            top, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder, read
            if folder == top:
                break


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return _share(quota, period)


def _quota_v1(folder: Path) -> float | None:
    return _share(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> float | None:
    """Microseconds of CPU time in each period; "max" (version 2) and -1 (version 1) are no limit."""
    if not quota.isascii() or not quota.isdigit() or not period.isascii() or not period.isdigit() or not int(period):
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
