"""What machine this is: its kind, its RAM, also inside a container, and its disks.

Law: where /proc and /sys do not say, the answer is None, never a guess.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from llmaas.config.boards import find_board
from llmaas.config.profiles import Hardware
from llmaas.frozen import frozen
from llmaas.host.memory import limits


@frozen
class Ram:
    """Bytes: what this process could ever use, and what it could use now."""

    total: int
    available: int


def ram(root: Path = Path("/")) -> Ram | None:
    """The machine's RAM, or the tighter limit of a control group (v1 or v2) that this process is in."""
    found = list(limits(root))
    if not found or found[0].whose != "machine":
        return None
    return Ram(min(limit.nbytes for limit in found), min(limit.free for limit in found))


def this_machine(environ: Mapping[str, str], root: Path = Path("/")) -> Hardware:
    """What profiles are chosen by."""
    found = ram(root)
    return Hardware(find_board(environ, root), found.total if found else None, disk_size)


def disk_size(folder: Path) -> int | None:
    """Bytes of the disk that holds the folder, or would hold it; None if that cannot be found out."""
    try:
        return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).total
    except OSError:
        return None
