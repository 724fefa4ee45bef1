"""The schema of the index database: its tables, its versions, and how it is opened.

Law: the schema version is ``PRAGMA user_version``. Step i of ``MIGRATIONS`` turns version i into i+1, in one
transaction, and is never edited once released. docs/format.md draws the tables.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from llmaas.errors import StoreFailed

INDEX = "index.sqlite"
"""Name of the database in the store's folder."""

_V1 = (
    """CREATE TABLE contexts (
        num INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        app TEXT NOT NULL,
        name TEXT NOT NULL,
        model TEXT NOT NULL,
        vocab TEXT NOT NULL,
        created REAL NOT NULL,
        last_used REAL NOT NULL,
        n_tokens INTEGER NOT NULL CHECK (n_tokens >= 0),
        UNIQUE (app, name))""",
    # A rowid table, since rows are long; the rowid is the order of the spans within their context.
    """CREATE TABLE spans (
        id INTEGER PRIMARY KEY,
        context INTEGER NOT NULL REFERENCES contexts (num) ON DELETE CASCADE,
        tokens BLOB NOT NULL CHECK (length(tokens) % 4 = 0),
        role TEXT,
        text TEXT,
        open INTEGER NOT NULL CHECK (open IN (0, 1)))""",
    "CREATE INDEX spans_of_context ON spans (context)",
    # No foreign key to contexts: a fork may use chunks of a context that was deleted.
    "CREATE TABLE files (id INTEGER PRIMARY KEY, context TEXT NOT NULL)",
    "CREATE INDEX files_of_context ON files (context)",
    # Clustered by place, not by key: keys are random, so a table in key order would touch one page per
    # chunk of a put; here a put's rows lie side by side, and so do the rows that a compaction reads.
    """CREATE TABLE chunks (
        file INTEGER NOT NULL REFERENCES files (id),
        offset INTEGER NOT NULL CHECK (offset >= 0),
        nbytes INTEGER NOT NULL CHECK (nbytes > 0),
        n_tokens INTEGER NOT NULL CHECK (n_tokens > 0),
        checksum BLOB NOT NULL CHECK (length(checksum) = 8),
        key BLOB NOT NULL UNIQUE CHECK (length(key) = 16),
        PRIMARY KEY (file, offset)) WITHOUT ROWID""",
)

# What the planner knows of a chunk (records.ChunkMeta), so that it need not be measured again after a restart.
_V2 = tuple(
    f"ALTER TABLE chunks ADD COLUMN {column}"
    for column in (
        "k_bits INTEGER",
        "v_bits INTEGER",
        "k_change REAL",
        "v_change REAL",
        "density REAL",
        "weight REAL",
        "measured_at INTEGER",
    )
)

# The data keys that chunks are encrypted with: a file whose ``seal`` is NULL is in clear.
_V3 = (
    # AUTOINCREMENT: a number is never used again, so what is known of a key cannot be mistaken for another's.
    """CREATE TABLE keys (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        context TEXT NOT NULL,
        cipher TEXT NOT NULL,
        wrapped BLOB NOT NULL CHECK (length(wrapped) = 60))""",
    "CREATE INDEX keys_of_context ON keys (context)",
    "ALTER TABLE files ADD COLUMN seal INTEGER REFERENCES keys (id)",
    "CREATE INDEX files_of_seal ON files (seal)",
)

# LoRA adapters that were registered while the service ran, and the one that each context uses ('': none).
_V4 = (
    """CREATE TABLE adapters (
        name TEXT PRIMARY KEY,
        path TEXT NOT NULL,
        fingerprint TEXT NOT NULL)""",
    "ALTER TABLE contexts ADD COLUMN adapter TEXT NOT NULL DEFAULT ''",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1, _V2, _V3, _V4)
VERSION = len(MIGRATIONS)


def prepare_writer(con: sqlite3.Connection, path: Path) -> None:
    """Set the writer's pragmas and bring the schema up to ``VERSION``. Raises StoreFailed if that cannot be done."""
    con.execute("PRAGMA foreign_keys = ON")
    # Overwrite what is deleted: text and tokens, and the data keys of deleted contexts.
    con.execute("PRAGMA secure_delete = ON")
    # The writer checkpoints by itself (see Index): its growth can then be measured, and a checkpoint
    # that finds no room cannot fail a commit.
    con.execute("PRAGMA wal_autocheckpoint = 0")
    version = user_version(con)
    if version > VERSION:
        raise StoreFailed(
            f"{path} was written by a newer llmaas (schema {version}; this one knows {VERSION})",
            hint="Upgrade llmaas, or use another store folder.",
        )
    if version == 0 and con.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StoreFailed(f"{path} is a database of another program", hint="Use another store folder.")
    if con.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise StoreFailed(f"{path}: this file system cannot hold a write-ahead log", hint="Use a local disk.")
    con.execute("PRAGMA synchronous = FULL")
    for step in range(version, VERSION):
        migrate(con, step)


def prepare_reader(con: sqlite3.Connection) -> None:
    """Set the pragmas of a connection that only reads."""
    con.execute("PRAGMA query_only = ON")
    con.execute("PRAGMA wal_autocheckpoint = 0")


def user_version(con: sqlite3.Connection) -> int:
    """The version of the schema; 0 for an empty database."""
    return int(con.execute("PRAGMA user_version").fetchone()[0])


def migrate(con: sqlite3.Connection, step: int) -> None:
    """Take the schema from version ``step`` to ``step + 1``, all or nothing."""
    con.execute("BEGIN IMMEDIATE")
    try:
        for statement in MIGRATIONS[step]:
            con.execute(statement)
        con.execute(f"PRAGMA user_version = {step + 1}")
        con.execute("COMMIT")
    except BaseException:
        if con.in_transaction:
            con.execute("ROLLBACK")
        raise


def soundness(con: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the database: problems of pages, indexes, constraints and references."""
    problems = [f"index: {row[0]}" for row in con.execute("PRAGMA integrity_check") if row[0] != "ok"]
    problems += [
        f"index: a row of {row[0]} refers to a missing row of {row[2]}"
        for row in con.execute("PRAGMA foreign_key_check")
    ]
    return problems
