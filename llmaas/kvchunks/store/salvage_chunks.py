"""Takes the adapters, and what is known of chunks, of a damaged index into a new one.

Law: the damaged index is only read. Chunks can be recomputed, so their tables are taken if all of them can be read, and
nobody minds a row that does not fit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress

from llmaas.kvchunks.store.adapters import insert_adapter, right_adapter
from llmaas.kvchunks.store.table_reader import TableReader

_CHUNK_TABLES = ("keys", "files", "chunks")
"""Each refers to those before it."""
Row = tuple[object, ...]


def take_adapters(old: sqlite3.Connection, new: sqlite3.Connection) -> int:
    """Returns how many are lost."""
    reader = TableReader(old, "adapters", ("rowid", "name", "path", "fingerprint", "checksum"))
    rows = list(reader)
    signed = any(row[-1] is not None for row in rows)
    lost = int(reader.first_gap is not None)
    for _, *values, checksum in rows:
        adapter = right_adapter(values, (checksum or b"") if signed else None)
        lost += adapter is None
        if adapter is not None:
            insert_adapter(new, adapter)
    return lost


def take_chunks(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Their files' numbers, data keys and metadata, too."""
    tables = list[tuple[str, tuple[str, ...], list[Row]]]()
    with suppress(sqlite3.DatabaseError):
        tables = [(table, *_all(old, table)) for table in _CHUNK_TABLES]
    for table, columns, rows in tables:
        _insert(new, table, columns, rows)


def _all(con: sqlite3.Connection, table: str) -> tuple[tuple[str, ...], list[Row]]:
    if not con.execute(f"PRAGMA table_info({table})").fetchall():
        return (), []  # an older version has no such table
    done = con.execute(f"SELECT * FROM {table}")
    return tuple(column[0] for column in done.description), done.fetchall()


def _insert(con: sqlite3.Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Insert rows, but none that break a rule of the schema."""
    if not rows:
        return
    sql = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    for row in rows:
        with suppress(sqlite3.IntegrityError, UnicodeEncodeError):
            con.execute(sql, row)
