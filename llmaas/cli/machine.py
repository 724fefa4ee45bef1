"""F9. What this machine has to give: RAM, also inside a container.

Law: reads /proc and /sys only; where they do not say, the answer is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ram:
    """Bytes: what this process could ever use, and what it could use now."""

    total: int
    available: int


def ram(root: Path = Path("/")) -> Ram | None:
    """The machine's RAM, or the tighter limit of a control group (v1 or v2) that this process is in."""
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
        total, available = found["MemTotal"], found["MemAvailable"]
    except (OSError, LookupError, ValueError):
        return None
    for group, limit_name, used_name in _groups(root):
        # A limit may stand at any level above; "max" (v2) or a huge number (v1) means none.
        for place in (group, *group.parents):
            limit, used = _number(place / limit_name), _number(place / used_name)
            if limit is not None and limit < total:
                total = limit
            if limit is not None and used is not None:
                available = min(available, max(0, limit - used))
    return Ram(total, available)


def _groups(root: Path) -> list[tuple[Path, str, str]]:
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            groups.append((root / "sys/fs/cgroup" / path.lstrip("/"), "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            place = root / "sys/fs/cgroup/memory" / path.lstrip("/")
            groups.append((place, "memory.limit_in_bytes", "memory.usage_in_bytes"))
    return groups


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None
