"""Reads a table of a damaged index row by row, past the places that cannot be read.

Law: the damaged index is only read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

_LOWEST = -(1 << 62)
_LOOK_AHEAD = 62
"""The next readable row is searched for up to two to the power of this ahead."""


class TableReader:
    """The rows of a table in the order of their rowids.

    ``columns``: names; the first is the rowid. Text and blobs come as bytes, and a column that the table has not, since
    it is of an older version, as None. An older version may not have the table, which is empty then.
    """

    def __init__(self, con: sqlite3.Connection, table: str, columns: Sequence[str]) -> None:
        self._con = con
        types = {row[1]: row[2] for row in con.execute(f"PRAGMA table_info({table})")}
        self._exists = bool(types)
        read = ", ".join(_expression(name, types) for name in columns)
        self._query = f"SELECT {read} FROM {table} NOT INDEXED WHERE {columns[0]} >= ? ORDER BY {columns[0]}"
        self.first_gap: int | None = None
        """The rowid where the first place begins that could not be read."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        at: int | None = _LOWEST if self._exists else None
        while at is not None:
            try:
                for row in self._con.execute(self._query, (at,)):
                    at = row[0] + 1
                    yield row
                return
            except sqlite3.DatabaseError:
                assert at is not None
                self.first_gap = at if self.first_gap is None else self.first_gap
                at = self._next_readable(at)

    def _next_readable(self, bad: int) -> int | None:
        """The first rowid above ``bad`` from which rows can be read again, by bisection; None if there is none."""
        base = max(bad, 0)
        good = next((base + (1 << n) for n in range(_LOOK_AHEAD) if self._is_readable(base + (1 << n))), None)
        if good is None:
            return None
        while good - bad > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self._is_readable(middle) else (good, middle)
        return good

    def _is_readable(self, rowid: int) -> bool:
        try:
            self._con.execute(self._query, (rowid,)).fetchone()
        except sqlite3.DatabaseError:
            return False
        return True


def _expression(name: str, types: dict[str, str]) -> str:
    if name not in types and name != "rowid":
        return "NULL"
    return f"CAST({name} AS BLOB)" if types.get(name) in ("TEXT", "BLOB") else name
