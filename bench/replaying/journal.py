"""A file of rows that a replay appends as they come, so that a run that is cut off can be gone on with.

Law: a run counts when its last row is there; the rows of a run that has none are as if they were not there.

Rows are JSON objects, one a line, with ``run`` (which run they belong to) and ``row``: "begin" (machine, versions,
settings), "call" (one call), "restart" (one call after the program was started again), "failed", "end" (what the whole
run took).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
            with path.open("ab") as file:  # the last line was cut off
                file.write(b"\n")

    def append(self, row: Row) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def runs(self) -> dict[str, list[Row]]:
        """The rows of each whole run, by its name; of a run that was begun several times, those of the last time."""
        return whole_runs(read_rows(self._path)) if self._path.exists() else {}


def read_rows(path: Path) -> Iterable[Row]:
    """All rows; a line that was cut off is left out."""
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"run", "row"} <= row.keys():
            yield row


def whole_runs(rows: Iterable[Row]) -> dict[str, list[Row]]:
    open_runs: dict[str, list[Row]] = defaultdict(list)
    whole: dict[str, list[Row]] = {}
    for row in rows:
        if row["row"] == "begin":
            open_runs[row["run"]] = []
        open_runs[row["run"]].append(row)
        if row["row"] == "end":
            whole[row["run"]] = open_runs.pop(row["run"])
    return whole
