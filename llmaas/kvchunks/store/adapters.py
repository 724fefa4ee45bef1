"""The table ``adapters``: LoRA adapters that were registered while the service ran.

Law: every change is one durable transaction. The adapters' files belong to others and are never opened here.
"""

from __future__ import annotations

from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.rows import AdapterRow


class AdapterTable:
    """Adapters by name. All methods raise StoreFailed, those that write DiskFull too."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def all(self) -> list[AdapterRow]:
        """All adapters, sorted by name."""
        with self._index.read() as con:
            return [
                AdapterRow(*row) for row in con.execute("SELECT name, path, fingerprint FROM adapters ORDER BY name")
            ]

    def save(self, row: AdapterRow) -> None:
        """Insert an adapter, or replace the one of the same name."""
        with self._index.write(durable=True) as txn:
            txn.con.execute(
                "INSERT OR REPLACE INTO adapters (name, path, fingerprint) VALUES (?, ?, ?)",
                (row.name, row.path, row.fingerprint),
            )

    def delete(self, name: str) -> None:
        """Delete an adapter; does nothing if there is none of that name."""
        with self._index.write(durable=True) as txn:
            txn.con.execute("DELETE FROM adapters WHERE name = ?", (name,))
