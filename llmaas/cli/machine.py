"""How much RAM this machine has, also inside a container.

Law: where /proc and /sys do not say, the answer is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmaas.host.memory import limits


@dataclass(frozen=True, slots=True)
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
