"""Sections of benches whose figures need no picture: tables of the figures as the bench printed them.

Law: nothing is computed, and nothing left out but the extremes of summaries. Names of nested figures are joined by
dots; a list of alike measurements is a table with a column for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.reporting.markdown import WIDTH, Line, about, command, of_bench, table

BENCHES = {
    "switch": "Switches from POOL and DISK",
    "switch_parts": "Where the time of a switch goes",
    "swapin": "Ways back into CELLS",
    "overhead": "One client against the bare loop",
    "edges": "HTTP, next turns and restarts",
    "busy": "Beside busy processes",
    "writes": "Bytes written to disk",
    "memory": "Memory against what doctor says",
    "startup": "Start with many contexts",
    "schemas": "Answers by JSON schemas",
    "models": "Loading models",
    "one_model": "Memory with one model",
    "hybrid": "Contexts of hybrid and recurrent models",
    "switching": "Switching between models",
    "killed": "A model's process is killed",
    "llmos": "By the socket and by slots: LLM-OS' evaluation",
    "migration": "Contexts that move to another node",
    "archives": "Archives, written and read",
}
_UNTIMED = frozenset({"one_model", "memory"})
"""Benches of bytes, whose figures do not depend on how busy the machine is."""
_MOST_NUMBERS = 8
"""A list of more numbers is told by how many there are."""
_MOST_COLUMNS = 6
"""Of more measurements, or of wider ones, the table goes on below."""
_SUMMARY = {"median", "p10", "p90"}
"""What makes a mapping one of ``bench.lib.stats.summary``."""


def sections(lines: Iterable[Line]) -> Iterator[str]:
    kept = list(lines)
    for name, title in BENCHES.items():
        for line in of_bench(kept, name):
            yield f"## {title}: {line['model']}"
            yield about(line, timed=name not in _UNTIMED)
            yield command(line["command"])
            figures = line["figures"]
            if len(figures) == 1 and isinstance(one := next(iter(figures.values())), dict):
                figures = one  # of the model in the title
            yield from tables(figures)


def tables(figures: Any, name: str = "") -> Iterator[str]:
    """Of the figures that stand alone one table, then one of each list of measurements, and of the lists in these."""
    if leaves := list(flat(figures)):
        yield table([name or "figure", "value"], leaves)
    for path, rows in _lists(figures, name):
        yield from _of_list(path, rows)


def _of_list(path: str, rows: list[Any]) -> Iterator[str]:
    found = [dict(flat(each)) for each in rows]
    names = list(dict.fromkeys(name for each in found for name in each))
    first = 0
    while first < len(rows):
        for n in range(_MOST_COLUMNS, 0, -1):
            part = found[first : first + n]
            head = [path, *range(first + 1, first + len(part) + 1)]
            made = table(head, ([name, *(each.get(name) for each in part)] for name in names))
            if max(map(len, made.splitlines())) <= WIDTH:
                break
        yield made
        first += len(part)
    for i, each in enumerate(rows, 1):
        for inner, more in _lists(each, path if len(rows) == 1 else f"{path} {i}"):
            yield from _of_list(inner, more)


def flat(figures: Any, name: str = "") -> Iterator[tuple[str, object]]:
    """The figures outside of lists of measurements; of a summary its median, with the deciles.

    >>> list(flat({"a": {"b": 1, "c": [{"n": 2}]}, "d": [1, 2]}))
    [('a.b', 1), ('d', '1, 2')]
    >>> list(flat({"ms": {"median": 2.0, "min": 0.5, "p10": 1.0, "p90": 3.0, "max": 9.0, "n": 7}}))
    [('ms', '2 (1 to 3)')]
    """
    if isinstance(figures, dict) and figures.keys() >= _SUMMARY:
        yield name, "{median:.4g} ({p10:.4g} to {p90:.4g})".format_map(figures)
    elif isinstance(figures, dict):
        for key, value in figures.items():
            yield from flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(figures, list) and not _measurements(figures):
        short = ", ".join(map(str, figures)) if len(figures) <= _MOST_NUMBERS else f"{len(figures)} numbers"
        yield name, short
    elif not isinstance(figures, list):
        yield name, figures


def _lists(figures: Any, name: str) -> Iterator[tuple[str, list[Any]]]:
    """The lists of measurements in ``figures`` that are in no other list, with their paths.

    >>> list(_lists({"a": {"b": 1, "c": [{"n": 2}]}, "d": [1, 2]}, "x"))
    [('x.a.c', [{'n': 2}])]
    """
    if isinstance(figures, dict):
        for key, value in figures.items():
            yield from _lists(value, f"{name}.{key}" if name else str(key))
    elif isinstance(figures, list) and _measurements(figures):
        yield name, figures


def _measurements(values: list[Any]) -> bool:
    return any(isinstance(each, dict | list) for each in values)
