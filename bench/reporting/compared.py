"""What moved between two result files, beyond the spread of three repeats.

Law: a figure has moved if its medians differ by more than the larger of the two spreads (greatest less least value
over the repeats). With fewer than three repeats the spread says little, so a tenth of the old value is taken if that is
more.

Repeats of a replay are in its line (``--repeats 3``); of other benches they are lines: run the bench three times with
the same ``--out``.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.replaying import compare

FEW, PART = 3, 0.1
Key = tuple[str, str, str]
_LEFT_OUT = ("command", "llm_os", "seed", "runs", "spread", "over_llmaas")
"""Figures that are no measurements of this run, or are compared by themselves."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def leaves(figures: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in ``figures``, by its path.

    >>> list(leaves({"a": [{"b": 1.5}], "c": True, "d": "x"}))
    [('a.0.b', 1.5)]
    """
    if isinstance(figures, Mapping):
        for name, value in figures.items():
            if name not in _LEFT_OUT:
                yield from leaves(value, f"{path}.{name}" if path else str(name))
    elif isinstance(figures, Sequence) and not isinstance(figures, str):
        for i, value in enumerate(figures):
            yield from leaves(value, f"{path}.{i}" if path else str(i))
    elif isinstance(figures, (int, float)) and not isinstance(figures, bool):
        yield path, float(figures)


def moved(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[compare.Moved]:
    """The figures that lines of one bench before and after both have."""
    before, after = _values(old), _values(new)
    for path in before:
        if path not in after:
            continue
        a, b = before[path], after[path]
        few = PART * abs(statistics.median(a)) if min(len(a), len(b)) < FEW else 0.0
        spread = max(max(a) - min(a), max(b) - min(b), few)
        yield compare.Moved(path, statistics.median(a), statistics.median(b), spread)


def _values(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for path, value in leaves(line["figures"]):
            found[path].append(value)
    return found


def by_bench(lines: Sequence[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    """The lines of each bench, command and model."""
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        found[line["bench"], line.get("command", ""), line["model"]].append(line)
    return found


def show(old_file: Path, new_file: Path) -> int:
    """Print what moved. 1 if a time of the service got longer in a replay, 2 if there is nothing to compare."""
    old, new = by_bench(lines_of(old_file)), by_bench(lines_of(new_file))
    worse, common = False, [key for key in new if key in old]
    for key in common:
        print(f"{key[0]}, {key[2]}: {len(old[key])} and {len(new[key])} lines")
        for text in compare.differs(old[key][-1], new[key][-1]):
            print(f"  not the same: {text}", file=sys.stderr)
        if key[0] == "replay":
            rows = list(compare.moved(old[key][-1], new[key][-1]))
            worse = worse or any(compare.is_worse(row) for row in rows)
        else:
            rows = list(moved(old[key], new[key]))
        for row in rows:
            if row.beyond:
                print(f"  {row if key[0] == 'replay' else _neutral(row)}")
        print(f"  {sum(not row.beyond for row in rows)} of {len(rows)} figures are within the spread")
    if not common:
        print("the files have no bench with the same command and model in common", file=sys.stderr)
        return 2
    return int(worse)


def _neutral(row: compare.Moved) -> str:
    """Of figures that may be better larger or smaller."""
    way = "up  " if row.new > row.old else "down"
    return f"{way} {row.what}: {row.old:.4g} -> {row.new:.4g} (spread {row.spread:.2g})"
