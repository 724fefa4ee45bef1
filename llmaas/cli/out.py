"""Text for people: sizes, ages, tables, errors.

Law: results go to stdout, everything else to stderr. Colour is used only on a terminal, and never with NO_COLOR set.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import TextIO

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""C0, DEL, C1 and surrogates. Other unprintable characters are harmless, and emoji need joiners."""


def print_error(message: str, hint: str = "") -> None:
    """An error as every command reports it: what happened, then what to do."""
    sys.stdout.flush()
    print(f"llmaas: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)


def print_note(text: str) -> None:
    """A remark beside the result."""
    print(f"llmaas: {text}", file=sys.stderr)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True))


def _styled(text: str, code: str, stream: TextIO) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


def dim(text: str, stream: TextIO) -> str:
    return _styled(text, "2", stream)


def bold(text: str, stream: TextIO) -> str:
    return _styled(text, "1", stream)


def coloured(text: str, level: str, stream: TextIO) -> str:
    """``text`` in the colour of ``level``: ok, warn or fail."""
    return _styled(text, {"ok": "32", "warn": "33", "fail": "31"}[level], stream)


def human_bytes(n: float) -> str:
    """A size in its largest unit.

    >>> human_bytes(1536)
    '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def human_age(seconds: float) -> str:
    """How long ago, in its largest unit.

    >>> [human_age(seconds) for seconds in (1, 300, 10800, 1036800)]
    ['just now', '5 min', '3 h', '12 d']
    """
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds / size)} {unit}" if seconds >= 2 else "just now"
    return f"{int(seconds / 86400)} d"


def printable(text: str, keep: str = "") -> str:
    """``text`` without control characters other than those in ``keep``: no name or answer can control the terminal."""
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else "\N{REPLACEMENT CHARACTER}", text)


def shortened(text: str, most: int = 40) -> str:
    """``text``, cut to ``most`` characters.

    >>> shortened("a rather long name", 10)
    'a rather …'
    """
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], stream: TextIO) -> str:
    """Columns as wide as their longest cell; figures (int, float) to the right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(head))]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)
        ).rstrip()

    return "\n".join([bold(line(head), stream), *map(line, cells)])
