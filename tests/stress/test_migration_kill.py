"""kill -9 at every statement of every migration: then the store is the old one or the new one, with all its tokens.

As a program this file is the victim: it opens copies of a store of an older version, each in a child process that is
killed before its n-th statement, until one child gets to the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmaas.kvchunks.store import schema as store_schema
from llmaas.kvchunks.store.signing import sign_all
from llmaas.kvchunks.store.store import Files, Span, Store
from llmaas.records import ContextId

TOKENS = tuple(range(40))
"""A span each: their checksums are written in several statements."""


class Deadly(Files):
    def __init__(self, n: int) -> None:
        self.left = n

    def count(self) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect(self, path: Path) -> sqlite3.Connection:
        files = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                files.count()
                return super().execute(sql, *args)

            def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
                files.count()
                return super().executemany(sql, *args)

        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Connection)


def victim(old: Path, copies: Path) -> None:
    n, status = 0, 1
    while status:
        n += 1
        root = copies / f"{n}"
        shutil.copytree(old, root)
        child = os.fork()
        if not child:
            Store(root, files=Deadly(n)).close()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)


def store_of_version(root: Path, version: int) -> None:
    for folder in (root, root / "payload"):
        folder.mkdir(mode=0o700)
    (root / "index.sqlite").touch(0o600)
    con = sqlite3.connect(root / "index.sqlite", isolation_level=None)
    con.execute("PRAGMA journal_mode = WAL")
    for step in range(version):
        store_schema.migrate(con, step)
    if version:
        con.execute(
            "INSERT INTO contexts (num, id, app, name, model, vocab, created, last_used, n_tokens)"
            " VALUES (1, 'c', '1000/a', 'name', 'model', 'vocab', 5.0, 6.0, ?)",
            (len(TOKENS),),
        )
        for i, token in enumerate(TOKENS):
            blob = token.to_bytes(4, "little")
            con.execute(
                "INSERT INTO spans (context, tokens, role, text, open) VALUES (1, ?, 'user', ?, 0)", (blob, f"{i}")
            )
    if version >= 5:
        sign_all(con)
    con.close()


@pytest.mark.parametrize("version", range(store_schema.VERSION))
def test_a_migration_that_is_killed_anywhere_is_done_at_the_next_opening(tmp_path: Path, version: int) -> None:
    store_of_version(tmp_path / "old", version)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in [str(Path(__file__).parents[2]), *sys.path] if p)}
    command = [sys.executable, __file__, str(tmp_path / "old"), str(tmp_path / "copies")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    roots = list((tmp_path / "copies").iterdir())
    assert len(roots) > len(store_schema.MIGRATIONS[version])
    for root in roots:
        with Store(root) as store:
            assert store.check().problems == ()
            if version:
                assert tuple(store.tokens(ContextId("c"))) == TOKENS
                assert store.spans(ContextId("c"))[1] == Span((1,), "user", "1")
        con = sqlite3.connect(root / "index.sqlite")
        assert store_schema.user_version(con) == store_schema.VERSION
        con.close()


if __name__ == "__main__":
    victim(Path(sys.argv[1]), Path(sys.argv[2]))
