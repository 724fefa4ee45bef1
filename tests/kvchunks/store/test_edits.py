"""Values that somebody put into a sound index: no start fails for one, others are not affected, and repair mends."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import cycle, product
from pathlib import Path

import pytest

from llmaas.kvchunks.store.store import Span, Store
from llmaas.records import ContextId
from tests.support.damaged_store import MASTER, coded_chunk, copy_store, fill, read, repaired
from tests.support.store_data import key, row

TABLES = ("contexts", "spans", "files", "chunks", "keys", "adapters", "sqlite_sequence", "text_keys")
NUMBERS = ("-1", "0", "2", "-9223372036854775808", "9223372036854775807", "1.5e308", "9e999")
BYTES = ("'text'", "''", "x''", "x'00'", "x'ff80ff'", "CAST(x'ff80ff' AS TEXT)", "zeroblob(70000)")
VALUES = ("NULL", *NUMBERS, *BYTES)


def all_columns(root: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(root / "index.sqlite")) as con:
        return [(table, row[1]) for table in TABLES for row in con.execute(f"PRAGMA table_info({table})")]


def edit(root: Path, table: str, column: str, value: str) -> bool:
    """Set the value in the table's second row, whatever the schema says of it; False if SQLite cannot."""
    path = root / "index.sqlite"
    rowid = "_rowid_" if table != "chunks" else "key"
    second = f"WHERE {rowid} = (SELECT {rowid} FROM {table} LIMIT 1 OFFSET {int(table != 'sqlite_sequence')})"
    with closing(sqlite3.connect(path, isolation_level=None)) as con:
        sql = con.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
        replace_sql(con, table, sql.replace("NOT NULL", ""))
    with closing(sqlite3.connect(path, isolation_level=None)) as con:
        con.execute("PRAGMA ignore_check_constraints = ON")
        try:
            done = con.execute(f"UPDATE {table} SET {column} = {value} {second}").rowcount == 1
        except sqlite3.Error:
            done = False
        replace_sql(con, table, sql)
    return done


def replace_sql(con: sqlite3.Connection, table: str, sql: str) -> None:
    version = con.execute("PRAGMA schema_version").fetchone()[0]
    con.execute("PRAGMA writable_schema = ON")
    con.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, table))
    con.execute(f"PRAGMA schema_version = {version + 1}")


def use(root: Path) -> None:
    """Everything that others do with the store works, and what they do lasts."""
    for turn in range(2):
        with Store(root, master=MASTER) as store:
            for i in (3, 5):
                ctx = ContextId(f"{i:016x}")
                before = store.tokens(ctx)
                for token in (7, 8):
                    store.append(ctx, [Span((token,), "user", "x")], expect=len(store.tokens(ctx)), now=99.0)
                assert list(store.tokens(ctx)) == [*before, 7, 8]
                name = key(("new", i, turn))
                store.put(ctx, [(name, 64, coded_chunk(name, 500))])
                assert store.get([name]) == [coded_chunk(name, 500)]
            store.create_context(row(f"new {turn}"))
            store.fork(ContextId(f"{3:016x}"), row(f"fork {turn}"))
            store.get([key((i, j)) for i in range(4) for j in range(6)])
            store.discard([chunk.key for chunk in store.chunks()][:3])
            store.delete_context(ContextId(f"{6 + turn:016x}"))
            assert (store.stats().contexts, store.encryption().keys > 0) == (10 + turn, True)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_an_edited_value_stops_no_start_and_is_said_or_mended(memory: Path, every: bool) -> None:
    fill(memory / "whole", contexts=8)
    whole, edited = read(memory / "whole"), memory / "edited"
    columns = all_columns(memory / "whole")
    assert len(columns) > 32
    edits = product(columns, VALUES) if every else zip(columns, cycle(VALUES), strict=False)
    for (table, column), value in edits:
        if not edit(copy_store(memory / "whole", edited), table, column, value):
            continue
        what = f"{table}.{column} = {value}"
        found = read(edited)
        assert found.opened, f"{what}: {found.said}"
        assert found.content() == whole.content() or found.said, what
        assert all(whole.shown.get(name, spans) == spans for name, spans in found.shown.items()), what
        use(copy_store(edited, memory / "used"))
        after, told = repaired(edited)
        changed = [name for name in whole.rows if after.of(name) != whole.of(name)]
        assert (
            all(f"{name[1]!r}" in told or f"of {name[0]}" in told for name in changed) or "could not be read" in told
        ), what
        assert after.opened, what
        assert len(changed) <= 1, what
