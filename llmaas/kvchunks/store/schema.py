"""The schema of the index database: its tables and their versions.

Law: the schema version is ``PRAGMA user_version``. Step i of ``MIGRATIONS`` turns version i into i+1, in one
transaction, and is never edited once released. docs/format.md draws the tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from llmaas.kvchunks.store.signing import sign_all

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

# Checksums over all rows that hold conversations (``sums``, ``chain``). Older rows are taken as they are.
_V5 = (
    "ALTER TABLE spans ADD COLUMN chain BLOB",
    "ALTER TABLE contexts ADD COLUMN chain BLOB",
    "ALTER TABLE contexts ADD COLUMN checksum BLOB",
    "ALTER TABLE adapters ADD COLUMN checksum BLOB",
    sign_all,
)

# The last turns of each context that were asked for with an idempotency key. Clustered by context, so that a row costs
# no page of an index.
_V6 = (
    """CREATE TABLE turns (
        context INTEGER NOT NULL REFERENCES contexts (num) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        key TEXT NOT NULL,
        request BLOB NOT NULL,
        n_spans INTEGER,
        n_tokens INTEGER NOT NULL,
        result BLOB,
        checksum BLOB NOT NULL,
        PRIMARY KEY (context, number)) WITHOUT ROWID""",
)

# How many seconds a context stays that nobody uses. A table of its own: nearly all contexts have no row.
_V7 = (
    """CREATE TABLE ttls (
        context INTEGER PRIMARY KEY REFERENCES contexts (num) ON DELETE CASCADE,
        ttl REAL NOT NULL CHECK (ttl > 0),
        checksum BLOB NOT NULL)""",
)

# The key that a context's text is encrypted with, twice, since the text is lost with it. Contexts that are there are
# encrypted afterwards (``seal_contexts``).
_V8 = (
    "ALTER TABLE contexts ADD COLUMN text_key BLOB",
    """CREATE TABLE text_keys (
        num INTEGER PRIMARY KEY REFERENCES contexts (num) ON DELETE CASCADE,
        id TEXT NOT NULL,
        wrapped BLOB NOT NULL,
        checksum BLOB NOT NULL)""",
)

# Contexts that go to other nodes, or came from one. No foreign key: what another node may ask for outlives the context.
_V9 = (
    """CREATE TABLE moves (
        move TEXT PRIMARY KEY,
        node TEXT NOT NULL,
        context TEXT NOT NULL,
        state INTEGER NOT NULL CHECK (state IN (1, 2, 3)),
        checksum BLOB NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX moves_of_context ON moves (context)",
)

MIGRATIONS: tuple[tuple[str | Callable[[sqlite3.Connection], None], ...], ...] = (
    _V1,
    _V2,
    _V3,
    _V4,
    _V5,
    _V6,
    _V7,
    _V8,
    _V9,
)
"""Each step changes the text of a table, so that the version can be told from the tables, too."""
VERSION = len(MIGRATIONS)


def user_version(con: sqlite3.Connection) -> int:
    """The version of the schema; 0 for an empty database."""
    return int(con.execute("PRAGMA user_version").fetchone()[0])


def migrate(con: sqlite3.Connection, step: int) -> None:
    """Take the schema from version ``step`` to ``step + 1``, all or nothing."""
    con.execute("BEGIN IMMEDIATE")
    try:
        for change in MIGRATIONS[step]:
            if isinstance(change, str):
                con.execute(change)
            else:
                change(con)
        con.execute(f"PRAGMA user_version = {step + 1}")
        con.execute("COMMIT")
    except BaseException:
        if con.in_transaction:
            con.execute("ROLLBACK")
        raise
