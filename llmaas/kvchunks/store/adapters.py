"""The table ``adapters``: LoRA adapters that were registered while the service ran.

Law: every change is one durable transaction. The adapters' files belong to others and are never opened here. A row that
does not match its checksum is as good as not there, and said.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence

from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.rows import AdapterRow
from llmaas.kvchunks.store.sums import Value, row_checksum, without_flip

log = logging.getLogger(__name__)

_READ = ", ".join(f"CAST({column} AS BLOB)" for column in ("name", "path", "fingerprint", "checksum"))


class AdapterTable:
    """Adapters by name. All methods raise StoreFailed, those that write DiskFull too."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def all(self) -> list[AdapterRow]:
        """All adapters whose rows are right, or could be put right, sorted by name."""
        with self._index.read() as con:
            found = list(read_adapters(con))
        for rowid, row in found:
            if row is None:
                log.error("adapter %d is damaged on disk and not registered: register it again", rowid)
        return sorted((row for _, row in found if row), key=lambda row: row.name)

    def save(self, row: AdapterRow) -> None:
        """Insert an adapter, or replace the one of the same name."""
        with self._index.write(durable=True) as txn:
            insert_adapter(txn.con, row)

    def delete(self, name: str) -> None:
        """Delete an adapter; does nothing if there is none of that name."""
        with self._index.write(durable=True) as txn:
            txn.con.execute("DELETE FROM adapters WHERE name = ?", (name,))


def insert_adapter(con: sqlite3.Connection, row: AdapterRow) -> None:
    """Insert an adapter, or replace the one of the same name."""
    values = (row.name, row.path, row.fingerprint)
    con.execute(
        "INSERT OR REPLACE INTO adapters (name, path, fingerprint, checksum) VALUES (?, ?, ?, ?)",
        (*values, row_checksum(values)),
    )


def read_adapters(con: sqlite3.Connection) -> Iterator[tuple[int, AdapterRow | None]]:
    """Each row's number and the adapter in it; None if it is damaged and cannot be put right."""
    for rowid, *values, checksum in con.execute(f"SELECT rowid, {_READ} FROM adapters NOT INDEXED").fetchall():
        yield rowid, right_adapter(values, checksum or b"")


def right_adapter(values: Sequence[Value], checksum: Value) -> AdapterRow | None:
    """The adapter of a row: name, path and fingerprint as bytes. ``checksum`` None: there are no checksums yet."""
    right = values if checksum in (None, row_checksum(values)) else without_flip(values, checksum)
    try:
        texts = [value.decode() for value in right or () if isinstance(value, bytes)]
    except UnicodeDecodeError:
        return None
    return AdapterRow(*texts) if len(texts) == 3 else None
