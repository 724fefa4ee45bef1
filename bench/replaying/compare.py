"""What moved between two replays, beyond the spread of their repeats.

    python -m bench.replaying.compare OLD NEW

OLD and NEW are files that ``bench.replay --out`` made; of each, its last line counts. A figure has moved if its medians
differ by more than the larger of the two spreads (greatest less least value over repeats). With fewer than three
repeats the spread says little, so a tenth of the old value is taken if that is more. The exit code is 1 if a figure of
the service got worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.replaying.bars import OURS

_FEW, _PART = 3, 0.1


@dataclass(frozen=True, slots=True)
class Moved:
    what: str
    old: float
    new: float
    spread: float

    @property
    def beyond(self) -> bool:
        return abs(self.new - self.old) > self.spread

    def __str__(self) -> str:
        verdict = ("worse " if self.new > self.old else "better") if self.beyond else "same  "
        return f"{verdict} {self.what}: {self.old:.4g} -> {self.new:.4g} (spread {self.spread:.2g})"


def moved(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Moved]:
    """The figures that both lines have; all are times, so more is worse."""
    for pattern, found in new["figures"].items():
        before = old["figures"].get(pattern)
        if not isinstance(found, dict) or not isinstance(before, dict):
            continue
        for name, program in found["programs"].items():
            was = before["programs"].get(name)
            for path, now in program["spread"].items():
                then = was["spread"].get(path) if was else None
                if now is None or then is None:
                    continue
                few = min(len(was["runs"]), len(program["runs"])) < _FEW
                spread = max(now[1], then[1], _PART * then[0] if few else 0.0)
                yield Moved(f"{pattern}, {name}, {path}", then[0], now[0], spread)


def is_worse(row: Moved) -> bool:
    """Whether a figure of the service got worse."""
    return row.beyond and row.new > row.old and f", {OURS}," in row.what


def differs(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What makes the two hard to compare."""
    told = [(old["machine"]["cpu"], new["machine"]["cpu"]), (old["model"], new["model"])]
    told += [(old["figures"].get(name), new["figures"].get(name)) for name in ("memory", "cold", "disk")]
    return [f"{a} and {b}" for a, b in told if a != b]


def last_line(path: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    found: dict[str, Any] = [line for line in lines if line["bench"] == "replay"][-1]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    old, new = last_line(args.old), last_line(args.new)
    for text in differs(old, new):
        print(f"not the same: {text}", file=sys.stderr)
    rows = list(moved(old, new))
    for row in rows:
        print(row)
    return int(any(map(is_worse, rows)))


if __name__ == "__main__":
    sys.exit(main())
