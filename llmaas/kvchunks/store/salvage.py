"""Reads what can be read of a damaged index, and writes it into a new one.

Law: the damaged file is only read. Of a conversation with a hole, the part before the hole is kept: the rest would lack
what it answers.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmaas.kvchunks.store.reports import Shortened

_LOWEST = -(1 << 62)
_UNKNOWN = {"created": 0.0, "last_used": 0.0, "adapter": ""}
_LOOK_AHEAD = 62
"""The next readable row is searched for up to two to the power of this ahead."""
Row = tuple[Any, ...]


def read_damaged(path: Path) -> Salvaged:
    """What can be read of the index at ``path``; nothing, if SQLite cannot read it at all."""
    found = Salvaged()
    with suppress(sqlite3.DatabaseError), closing(_reader(path)) as con:
        found.read(con)
    return found


def _reader(path: Path) -> sqlite3.Connection:
    """A read-only connection, so that not even the log is copied into the database."""
    con = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    con.execute("PRAGMA cell_size_check = ON")
    return con


@dataclass(slots=True)
class _Table:
    """The rows of one table that could be read, by rowid, and the rowid where the first gap begins."""

    columns: tuple[str, ...] = ()
    rows: dict[int, Row] = field(default_factory=dict)
    first_gap: int | None = None

    def read(self, con: sqlite3.Connection, name: str) -> None:
        self.columns = tuple(row[1] for row in con.execute(f"PRAGMA table_info({name})"))
        at: int | None = _LOWEST
        while at is not None:
            try:
                for row in _rows_from(con, name, at):
                    at = row[0] + 1
                    self.rows[row[0]] = row[1:]
                return
            except sqlite3.DatabaseError:
                self.first_gap = at if self.first_gap is None else self.first_gap
                at = _next_readable(con, name, at)

    def dicts(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for rowid, row in sorted(self.rows.items()):
            yield rowid, dict(zip(self.columns, row, strict=True))


def _rows_from(con: sqlite3.Connection, table: str, rowid: int) -> sqlite3.Cursor:
    return con.execute(f"SELECT rowid, * FROM {table} NOT INDEXED WHERE rowid >= ? ORDER BY rowid", (rowid,))


def _next_readable(con: sqlite3.Connection, name: str, bad: int) -> int | None:
    """The first rowid above ``bad`` from which rows can be read again, by bisection; None if there is none."""

    def readable(rowid: int) -> bool:
        try:
            _rows_from(con, name, rowid).fetchone()
        except sqlite3.DatabaseError:
            return False
        return True

    base = max(bad, 0)
    good = next((base + (1 << n) for n in range(_LOOK_AHEAD) if readable(base + (1 << n))), None)
    if good is None:
        return None
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if readable(middle) else (good, middle)
    return good


@dataclass(slots=True)
class Salvaged:
    """What could be read of a damaged index."""

    contexts: _Table = field(default_factory=_Table)
    spans: _Table = field(default_factory=_Table)
    tables: list[tuple[str, tuple[str, ...], list[Row]]] = field(default_factory=list)
    """Tables with their columns and rows. Those of chunks are here only if both could be read in full: chunks can be
    recomputed.
    """

    def read(self, con: sqlite3.Connection) -> None:
        """Raises sqlite3.DatabaseError if the file cannot be read at all."""
        self.contexts.read(con, "contexts")
        self.spans.read(con, "spans")
        with suppress(sqlite3.DatabaseError):
            self._restore_names(con)
        with suppress(sqlite3.DatabaseError):
            self.tables = [(name, *_all(con, name)) for name in ("files", "chunks")]
        with suppress(sqlite3.DatabaseError):
            self.tables.append(("adapters", *_all(con, "adapters")))

    def _restore_names(self, con: sqlite3.Connection) -> None:
        """Rebuild rows of ``contexts`` that cannot be read from the table's indexes, which hold id, app and name too.

        The tokenizer is taken to be that of most other contexts.
        """
        known = self.contexts.rows
        if self.contexts.first_gap is None:
            return
        models = Counter((row["model"], row["vocab"]) for _, row in self.contexts.dicts())
        model, vocab = models.most_common(1)[0][0] if models else ("", "")
        ids = dict(con.execute("SELECT rowid, id FROM contexts INDEXED BY sqlite_autoindex_contexts_1 ORDER BY id"))
        names = con.execute(
            "SELECT rowid, app, name FROM contexts INDEXED BY sqlite_autoindex_contexts_2 ORDER BY app, name"
        )
        for rowid, app, name in names.fetchall():
            if rowid not in known and rowid in ids:
                row = {"num": rowid, "id": ids[rowid], "app": app, "name": name, "model": model, "vocab": vocab}
                known[rowid] = tuple((row | _UNKNOWN).get(column) for column in self.contexts.columns)

    def lost(self) -> int:
        """Conversations of which there are spans but no name; those without either leave no trace."""
        nums = {row["num"] for _, row in self.contexts.dicts()}
        return len({row["context"] for _, row in self.spans.dicts()} - nums)

    def write(self, con: sqlite3.Connection) -> tuple[int, tuple[Shortened, ...]]:
        """Insert everything into a new index. Returns how many contexts it has, and those that lost their end."""
        shortened, kept = [], 0
        by_context = self._spans_by_context()
        for rowid, context in self.contexts.dicts():
            said = context["n_tokens"]  # None if only the indexes had the context
            spans = self._before_the_gap(by_context.get(rowid, []), said)
            n = _total(spans)
            if not _insert(con, "contexts", [context | {"num": rowid, "n_tokens": n}]):
                continue
            _insert(con, "spans", spans)
            kept += 1
            if said is not None and n != said:
                shortened.append(Shortened(context["name"], context["app"], n, said))
        for name, columns, rows in self.tables:
            _insert(con, name, [dict(zip(columns, row, strict=True)) for row in rows])
        return kept, tuple(shortened)

    def _spans_by_context(self) -> dict[int, list[dict[str, Any]]]:
        """The spans whose tokens make sense, in order, by their context's number."""
        found: dict[int, list[dict[str, Any]]] = {}
        for rowid, span in self.spans.dicts():
            if isinstance(span["tokens"], bytes) and len(span["tokens"]) % 4 == 0:
                found.setdefault(span["context"], []).append(span | {"id": rowid})
        return found

    def _before_the_gap(self, spans: list[dict[str, Any]], n_tokens: int | None) -> list[dict[str, Any]]:
        """All of a context's spans if they have ``n_tokens``; otherwise those before the first gap in the table."""
        gap = self.spans.first_gap
        if _total(spans) == n_tokens or gap is None:
            return spans
        return [span for span in spans if span["id"] < gap]


def _all(con: sqlite3.Connection, name: str) -> tuple[tuple[str, ...], list[Row]]:
    done = con.execute(f"SELECT * FROM {name}")
    return tuple(column[0] for column in done.description), done.fetchall()


def _total(spans: Sequence[dict[str, Any]]) -> int:
    return sum(len(span["tokens"]) for span in spans) // 4


def _insert(con: sqlite3.Connection, table: str, rows: Sequence[dict[str, Any]]) -> int:
    """Insert rows, but none that break a rule of the schema, and no columns it does not have. Returns how many."""
    known = [row[1] for row in con.execute(f"PRAGMA table_info({table})")]
    n = 0
    for row in rows:
        columns = [name for name in known if name in row]
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        with suppress(sqlite3.IntegrityError):
            n += con.execute(sql, [row[name] for name in columns]).rowcount
    return n
