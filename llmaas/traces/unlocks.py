"""When a phone was unlocked, from screen events as the package niimpy and the AWARE framework have them.

Law: reads ``time`` (seconds) and ``screen_status``, and nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from llmaas.errors import BadRequest

_UNLOCKED = 3
"""AWARE's screen_status: 0 off, 1 on, 2 locked, 3 unlocked."""


def read_unlocks(lines: Iterable[str]) -> Iterator[float]:
    """Seconds from the first event to each unlock, ascending. Raises BadRequest with the number of a wrong line."""
    found = []
    begin = None
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            t, status = float(row["time"]), int(float(row["screen_status"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"line {number} has no time and screen_status: {error}") from error
        begin = t if begin is None else min(begin, t)
        if status == _UNLOCKED:
            found.append(t)
    return (t - (begin or 0.0) for t in sorted(found))
