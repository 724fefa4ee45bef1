"""An index of another version or program, or that another process uses."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.store import Span, Store
from tests.support.store_data import A, row


def test_an_index_of_a_newer_version_or_of_another_program_is_left_alone(tmp_path: Path) -> None:
    for name, statement, message in [
        ("newer", "PRAGMA user_version = 99", "newer llmaas"),
        ("foreign", "CREATE TABLE photos (id)", "another program"),
    ]:
        root = tmp_path / name
        root.mkdir()
        con = sqlite3.connect(root / "index.sqlite")
        con.execute(statement)
        con.close()
        before = (root / "index.sqlite").read_bytes()
        with pytest.raises(StoreFailed, match=message):
            Store(root)
        assert (root / "index.sqlite").read_bytes() == before
        assert Store.repair_index(root) is None


def test_an_index_that_another_process_locks_is_a_clear_error_and_goes_on_afterwards(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Store(root) as store:
        store.create_context(row(A))
        other = sqlite3.connect(root / "index.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFailed, match=r"index\.sqlite: database is locked"):
            store.append(A, [Span((1,))], expect=0, now=0.0)
        other.execute("ROLLBACK")
        other.close()
        assert store.append(A, [Span((1,))], expect=0, now=0.0) == 1


def test_a_reader_from_outside_does_not_stop_the_writer(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Store(root, wal_limit=500_000) as store:
        store.create_context(row(A))
        other = sqlite3.connect(root / "index.sqlite", isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT * FROM contexts").fetchall()
        for i in range(20):
            store.append(A, [Span(tuple(range(5000)))], expect=5000 * i, now=0.0)
        other.execute("ROLLBACK")
        other.close()
        assert len(store.tokens(A)) == 100_000
        assert store.check().problems == ()


def test_a_root_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_text("not a folder")
    with pytest.raises(StoreFailed, match="store"):
        Store(path)
