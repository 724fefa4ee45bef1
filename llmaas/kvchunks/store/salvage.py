"""A damaged index: what can still be read of it goes into a new one, and the old one is set aside.

Law: the damaged file is only read, and never deleted. It is replaced when all that can be had of it is safely in the
new one; a kill at any moment leaves the old index or the new one. Of a conversation with a hole, what comes before the
hole is kept: what follows would be told without what it answers.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.rows import Salvage, Shortened
from llmaas.kvchunks.store.schema import move_aside
from llmaas.kvchunks.store.syscalls import Files

_PARTS = ("-wal", "-shm", "")
_LOWEST = -(1 << 62)
_UNKNOWN = {"created": 0.0, "last_used": 0.0, "adapter": ""}
_FAR = 62
"""Powers of two to look ahead for the next readable row."""


def salvage(path: Path, files: Files) -> Salvage:
    """Replace the damaged index at ``path``. The caller holds the store's lock. Raises OSError, sqlite3.Error."""
    new = _new(path)
    _remove(new)
    found = _Found()
    with suppress(sqlite3.DatabaseError), closing(_reader(path)) as con:
        found.read(con)
    index = Index(new, files, wal_limit=1 << 20)
    try:
        with index.write(durable=True) as txn:
            kept, shortened = found.write(txn.con)
    finally:
        index.close()
    moved = move_aside(path)
    finish(path, files)
    return Salvage(moved, kept, shortened, found.lost())


def finish(path: Path, files: Files) -> None:
    """End a replacement that a kill cut short, if there is one: only then is there a new index and no old one."""
    if _new(path).exists() and not path.exists():
        _remove(path)  # a log that was not moved any more: it would be taken for the new one's
        _new(path).rename(path)
        files.sync_folder(path.parent)


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _remove(path: Path) -> None:
    for suffix in _PARTS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _reader(path: Path) -> sqlite3.Connection:
    """Read-only, so that not even the log is copied in."""
    con = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    con.execute("PRAGMA cell_size_check = ON")
    return con


Row = tuple[Any, ...]


@dataclass(slots=True)
class _Table:
    """Rows that could be read, by rowid, and where the first one is missing."""

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
    """The first rowid above ``bad`` from which rows can be read again; None if there is none."""

    def readable(rowid: int) -> bool:
        try:
            _rows_from(con, name, rowid).fetchone()
        except sqlite3.DatabaseError:
            return False
        return True

    base = max(bad, 0)
    good = next((base + (1 << n) for n in range(_FAR) if readable(base + (1 << n))), None)
    if good is None:
        return None
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if readable(middle) else (good, middle)
    return good


@dataclass(slots=True)
class _Found:
    contexts: _Table = field(default_factory=_Table)
    spans: _Table = field(default_factory=_Table)
    chunks: list[tuple[str, tuple[str, ...], list[Row]]] = field(default_factory=list)
    """Tables with their columns and rows: only if all of them could be read, since they can be recomputed."""

    def read(self, con: sqlite3.Connection) -> None:
        self.contexts.read(con, "contexts")
        self.spans.read(con, "spans")
        with suppress(sqlite3.DatabaseError):
            self._name_the_nameless(con)
        with suppress(sqlite3.DatabaseError):
            self.chunks = [(name, *_all(con, name)) for name in ("files", "chunks")]
        with suppress(sqlite3.DatabaseError):
            self.chunks.append(("adapters", *_all(con, "adapters")))

    def _name_the_nameless(self, con: sqlite3.Connection) -> None:
        """The indexes of ``contexts`` hold id, app and name too. The tokenizer is that of most other contexts."""
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
        """Conversations of which there are words but no name; those without either leave no trace."""
        nums = {row["num"] for _, row in self.contexts.dicts()}
        return len({row["context"] for _, row in self.spans.dicts()} - nums)

    def write(self, con: sqlite3.Connection) -> tuple[int, tuple[Shortened, ...]]:
        shortened = []
        by_context: dict[int, list[dict[str, Any]]] = {}
        for rowid, span in self.spans.dicts():
            if isinstance(span["tokens"], bytes) and len(span["tokens"]) % 4 == 0:
                by_context.setdefault(span["context"], []).append(span | {"id": rowid})
        kept = 0
        for rowid, context in self.contexts.dicts():
            spans = by_context.get(rowid, [])
            said = context["n_tokens"]  # None if only the indexes knew it
            if _total(spans) != said and self.spans.first_gap is not None:
                spans = [span for span in spans if span["id"] < self.spans.first_gap]
            n = _total(spans)
            if not _insert(con, "contexts", [context | {"num": rowid, "n_tokens": n}]):
                continue
            _insert(con, "spans", spans)
            kept += 1
            if said is not None and n != said:
                shortened.append(Shortened(context["name"], context["app"], n, said))
        for name, columns, rows in self.chunks:
            _insert(con, name, [dict(zip(columns, row, strict=True)) for row in rows])
        return kept, tuple(shortened)


def _all(con: sqlite3.Connection, name: str) -> tuple[tuple[str, ...], list[Row]]:
    done = con.execute(f"SELECT * FROM {name}")
    return tuple(column[0] for column in done.description), done.fetchall()


def _total(spans: Sequence[dict[str, Any]]) -> int:
    return sum(len(span["tokens"]) for span in spans) // 4


def _insert(con: sqlite3.Connection, table: str, rows: Sequence[dict[str, Any]]) -> int:
    """Rows that went in; those that break a rule of the schema are left out, as are columns it does not know."""
    known = [row[1] for row in con.execute(f"PRAGMA table_info({table})")]
    n = 0
    for row in rows:
        columns = [name for name in known if name in row]
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        with suppress(sqlite3.IntegrityError):
            n += con.execute(sql, [row[name] for name in columns]).rowcount
    return n
