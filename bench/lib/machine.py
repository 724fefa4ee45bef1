"""The machine, the versions and the commit that a bench's figures belong to, and how busy other processes were."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_RESULTS = ("docs/results", "docs/results.md", "docs/papers.md")
"""What benches and their pages write is no change of what is measured."""


def machine() -> dict[str, Any]:
    cpu = _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    memory = (_field(Path("/proc/meminfo"), "MemTotal") or "0 kB").split()[0]
    return {
        "cpu": cpu,
        "arch": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory) // 1024,
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_seconds() -> tuple[float, float, float]:
    """Seconds of: the clock; all processes' CPU time on all cores; the CPU time of this one and its ended children."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text("ascii").split()[1:9])
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy, sum(os.times()[:4])


def others_share(begin: tuple[float, float, float], end: tuple[float, float, float]) -> float:
    """The part of all cores, 0 to 1, that other processes used between two values of ``cpu_seconds``."""
    wall, busy, own = (b - a for a, b in zip(begin, end, strict=True))
    return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))


def _field(path: Path, key: str) -> str | None:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


def versions(*packages: str) -> dict[str, str | None]:
    """Of the packages, None where one is not installed, and of Python."""
    found = {package: _version(package) for package in packages}
    return found | {"python": platform.python_version()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this checkout, with "+" if files were changed since; None outside git."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = [*git, "status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in _RESULTS)]
        dirty = subprocess.run(status, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout else "")
