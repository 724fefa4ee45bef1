"""Sections of benches whose figures need no picture: each figure with its name, as the bench printed it.

Law: nothing is left out, and nothing is computed but the names: those of nested figures are joined by dots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.reporting.markdown import Line, about, command, of_bench, table

BENCHES = {
    "switch": "Switches from POOL and DISK",
    "swapin": "Ways back into CELLS",
    "overhead": "One client against the bare loop",
    "edges": "HTTP, next turns and restarts",
    "busy": "Beside busy processes",
    "writes": "Bytes written to disk",
    "memory": "Memory against what doctor says",
    "startup": "Start with many contexts",
    "schemas": "Answers by JSON schemas",
    "models": "Loading models",
    "hybrid": "Contexts of hybrid and recurrent models",
    "switching": "Switching between models",
    "killed": "A model's process is killed",
}
_MOST_NUMBERS = 8
"""A list of more numbers is told by how many there are."""


def sections(lines: Iterable[Line]) -> Iterator[str]:
    kept = list(lines)
    for name, title in BENCHES.items():
        for line in of_bench(kept, name):
            yield f"## {title}: {line['model']}"
            yield about(line)
            yield command(line["command"])
            yield table(["figure", "value"], flat(line["figures"]))


def flat(figures: Any, name: str = "") -> Iterator[tuple[str, object]]:
    """
    >>> list(flat({"a": {"b": 1, "c": [{"n": 2}]}, "d": [1, 2]}))
    [('a.b', 1), ('a.c.0.n', 2), ('d', '1, 2')]
    """
    if isinstance(figures, dict):
        for key, value in figures.items():
            yield from flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(figures, list) and any(isinstance(each, dict | list) for each in figures):
        for i, each in enumerate(figures):
            yield from flat(each, f"{name}.{i}")
    elif isinstance(figures, list):
        short = ", ".join(map(str, figures)) if len(figures) <= _MOST_NUMBERS else f"{len(figures)} numbers"
        yield name, short
    else:
        yield name, figures
