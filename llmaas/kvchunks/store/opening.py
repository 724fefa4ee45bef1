"""How a connection to the index is opened: its settings, its version, and whether it is sound enough to work with.

Law: an index that is damaged as a database, or of another program or a newer version, is refused before anything is
written to it. A value that is damaged is not a reason to refuse: the rows' checksums find it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.schema import VERSION, migrate, user_version
from llmaas.kvchunks.store.soundness import find_version, structure
from llmaas.kvchunks.store.sums import tolerant_text
from llmaas.kvchunks.store.syscalls import IndexDamaged


def prepare_writer(con: sqlite3.Connection, path: Path) -> None:
    """Set the writer's pragmas and bring the schema up to ``VERSION``. Raises StoreFailed if that cannot be done."""
    con.text_factory = tolerant_text
    con.execute("PRAGMA foreign_keys = ON")
    # Overwrite what is deleted: text and tokens, and the data keys of deleted contexts.
    con.execute("PRAGMA secure_delete = ON")
    # The writer checkpoints by itself (see Index): its growth can then be measured, and a checkpoint
    # that finds no room cannot fail a commit.
    con.execute("PRAGMA wal_autocheckpoint = 0")
    version = find_version(con, path)
    if version > VERSION:
        raise StoreFailed(
            f"{path} was written by a newer llmaas (schema {version}; this one knows {VERSION})",
            hint="Upgrade llmaas, or use another store folder.",
        )
    if con.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise StoreFailed(f"{path}: this file system cannot hold a write-ahead log", hint="Use a local disk.")
    con.execute("PRAGMA synchronous = FULL")
    if problems := structure(con):
        raise IndexDamaged(f"{path} is damaged: {problems[0]}")
    if version != user_version(con):
        con.execute(f"PRAGMA user_version = {version}")
    for step in range(version, VERSION):
        migrate(con, step)


def prepare_reader(con: sqlite3.Connection) -> None:
    """Set the pragmas of a connection that only reads."""
    con.text_factory = tolerant_text
    con.execute("PRAGMA query_only = ON")
    con.execute("PRAGMA wal_autocheckpoint = 0")
