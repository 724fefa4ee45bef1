"""Parts of a page in Markdown.

Law: no line is longer than ``WIDTH`` but in a table whose row cannot be shorter.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

WIDTH = 100
_NO_EXPONENT = 1e4
"""Larger numbers would be told as 1.2e+04."""
Line = Mapping[str, Any]
"""What a bench has printed."""


def row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(shown, cells)) + " |"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """The first column to the left, the others to the right."""
    names = list(head)
    return "\n".join([row(names), row(["---", *["--:"] * (len(names) - 1)]), *map(row, rows)])


def shown(cell: object) -> str:
    """
    >>> [shown(cell) for cell in (31510.0, 1234.5678, 12.0, 0.01234, 7, None, "a", True)]
    ['31510', '1235', '12', '0.01234', '7', '', 'a', 'yes']
    """
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.0f}" if _NO_EXPONENT <= abs(cell) < math.inf else f"{cell:.4g}"
    return str(cell)


def prose(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def item(text: str) -> str:
    return textwrap.fill(f"* {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def command(text: str) -> str:
    """A block with a command, wrapped as a shell takes it: a list of names goes on at the beginning of a line."""
    wrapped = textwrap.wrap(text, WIDTH - 4, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "```\n" + " \\\n".join("\\\n".join(_cut_at_commas(line)) for line in wrapped) + "\n```"


def _cut_at_commas(line: str) -> Iterator[str]:
    while len(line) > WIDTH - 4 and (end := line.rfind(",", 0, WIDTH - 4) + 1):
        yield line[:end]
        line = line[end:]
    yield line


def about(line: Line, *, timed: bool = True) -> str:
    """Where and when a line was measured; ``timed``: how busy the machine was changes its figures."""
    machine = line["machine"]
    busy = machine.get("others_cpu") if timed else None
    others = f"; other processes took {busy:.0%} of it meanwhile" if busy else ""
    return f"{machine['cpu']}, {machine['cores']} cores{others}; commit {line['commit']}, {line['time'][:10]}."


def of_bench(lines: Iterable[Line], *names: str) -> Iterator[Line]:
    return (line for line in lines if line["bench"] in names)
