"""The store's folder: its modes, its lock, its log, and an index of the first version."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from array import array
from contextlib import closing
from pathlib import Path

import pytest

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.store import Store
from llmaas.records import ContextId
from tests.support.store_data import data, glue, key, row


def test_everything_is_private_whatever_the_umask(root: Path) -> None:
    before = os.umask(0)
    try:
        with Store(root) as store:
            store.create_context(row("a"), [glue(1)])
            store.put(ContextId("a"), [(key(1), 64, b"abc")])
            found = {p: stat.S_IMODE(p.stat().st_mode) for p in [root, *root.rglob("*")]}
            assert store.check().problems == ()
    finally:
        os.umask(before)
    assert {p.name for p in found} >= {"index.sqlite", "index.sqlite-wal", "lock", "payload", "00000001.kv"}
    assert {p for p, mode in found.items() if mode != (0o700 if p.is_dir() else 0o600)} == set()


def test_a_second_store_on_the_folder_is_told_who_holds_it(root: Path) -> None:
    with Store(root):
        with pytest.raises(StoreFailed, match=f"in use by process {os.getpid()}"):
            Store(root)
        with pytest.raises(StoreFailed, match="in use"):
            Store.repair_index(root)
        code = "import sys, pathlib; from llmaas.kvchunks.store.store import Store; Store(pathlib.Path(sys.argv[1]))"
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        other = subprocess.run([sys.executable, "-c", code, str(root)], env=env, capture_output=True, text=True)
        assert other.returncode == 1
        assert f"in use by process {os.getpid()}" in other.stderr
    with Store(root) as store:
        assert store.check().problems == ()


def test_a_closed_store_says_so(root: Path) -> None:
    store = Store(root)
    store.close()
    store.close()
    with pytest.raises(StoreFailed, match="closed"):
        store.contexts()
    with pytest.raises(StoreFailed, match="closed"):
        store.create_context(row("a"))


def test_a_log_left_behind_is_recovered(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2)])
        store.put(ContextId("a"), [(key(1), 64, b"abc")])
        assert (root / "index.sqlite-wal").stat().st_size > 0
        shutil.copytree(root, copy)  # what a crash at this moment leaves
    with Store(copy) as store:
        assert list(store.tokens(ContextId("a"))) == [1, 2]
        assert bytes(store.get([key(1)])[0] or b"") == b"abc"
        assert store.check().problems == ()


def test_evicting_the_page_cache_changes_nothing_that_can_be_seen(root: Path) -> None:
    with Store(root) as store:
        store.put(ContextId("a"), [(key(1), 64, data(1, 300_000))])
        store.evict_page_cache()
        assert bytes(store.get([key(1)])[0] or b"") == data(1, 300_000)


def test_an_index_of_the_first_version_is_taken_over_with_its_chunks(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2)])
        store.put(ContextId("a"), [(key(1), 64, b"data")])
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        for column in ("k_bits", "v_bits", "k_change", "v_change", "density", "weight", "measured_at"):
            con.execute(f"ALTER TABLE chunks DROP COLUMN {column}")
        con.execute("DROP INDEX files_of_seal")
        con.execute("ALTER TABLE files DROP COLUMN seal")
        con.execute("DROP TABLE keys")
        con.execute("DROP TABLE adapters")
        con.execute("DROP TABLE turns")
        con.execute("DROP TABLE moves")
        con.execute("DROP TABLE ttls")
        con.execute("DROP TABLE text_keys")
        for table, column in (
            ("contexts", "text_key"),
            ("contexts", "adapter"),
            ("contexts", "chain"),
            ("contexts", "checksum"),
            ("spans", "chain"),
        ):
            con.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        con.execute("PRAGMA user_version = 1")
    with Store(root) as store:
        assert list(store.chunks()) == [(key(1), 64, 4, None)]
        assert bytes(store.get([key(1)])[0] or b"") == b"data"
        assert store.tokens(ContextId("a")) == array("i", [1, 2])
        assert [found.adapter for found in store.contexts()] == [""]
        assert store.check().problems == ()
