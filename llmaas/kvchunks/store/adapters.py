"""LoRA adapters that were registered while the service ran: where their files are, and what they held.

Law: every change is one durable transaction. The files are somebody else's: they are never opened here.
"""

from __future__ import annotations

from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.rows import AdapterRow


class AdapterTable:
    """The table ``adapters``."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def all(self) -> list[AdapterRow]:
        """By name."""
        with self._index.read() as con:
            return [
                AdapterRow(*row) for row in con.execute("SELECT name, path, fingerprint FROM adapters ORDER BY name")
            ]

    def save(self, row: AdapterRow) -> None:
        """In place of what had the name. Raises DiskFull, StoreFailed."""
        with self._index.write(durable=True) as txn:
            txn.con.execute(
                "INSERT OR REPLACE INTO adapters (name, path, fingerprint) VALUES (?, ?, ?)",
                (row.name, row.path, row.fingerprint),
            )

    def delete(self, name: str) -> None:
        with self._index.write(durable=True) as txn:
            txn.con.execute("DELETE FROM adapters WHERE name = ?", (name,))
