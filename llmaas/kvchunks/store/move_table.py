"""Moves of contexts between nodes, as the store keeps them.

Law: each change is one durable transaction.
"""

from __future__ import annotations

from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.move_rows import MoveRow, forget_move, insert_move, read_moves, settle_move


class MoveTable:
    """May be called from any thread. Raises StoreFailed, DiskFull."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def all(self) -> list[MoveRow]:
        with self._index.read() as con:
            return list(read_moves(con))

    def find(self, move: str) -> MoveRow | None:
        return next((row for row in self.all() if row.move == move), None)

    def put(self, row: MoveRow) -> None:
        """From now on, also after a crash."""
        with self._index.write(durable=True) as txn:
            insert_move(txn.con, row)

    def forget(self, move: str) -> None:
        with self._index.write(durable=True) as txn:
            forget_move(txn.con, move)

    def settle(self, row: MoveRow) -> None:
        """The node that the context came from knows that it is here, and will not ask."""
        with self._index.write(durable=True) as txn:
            settle_move(txn.con, row)
