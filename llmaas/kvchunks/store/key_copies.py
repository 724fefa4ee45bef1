"""The table ``text_keys``: the wrapped text key of each encrypted context a second time.

Law: in the transaction of the caller, so that both copies are written and deleted together. A damaged row of
``contexts`` must not cost the conversation, which nobody could read without its key.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from llmaas.kvchunks.store.sums import Value, row_checksum, without_flip
from llmaas.kvchunks.store.table_reader import TableReader
from llmaas.kvchunks.store.text_seal import is_text_key

_COLUMNS = ("num", "id", "wrapped", "checksum")


def insert_key_copy(con: sqlite3.Connection, num: int, ctx: str, wrapped: bytes) -> None:
    """Insert the copy of context number ``num``, or replace it."""
    con.execute(
        f"INSERT OR REPLACE INTO text_keys ({', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?)",
        (num, ctx, wrapped, row_checksum((num, ctx, wrapped))),
    )


def delete_key_copy(con: sqlite3.Connection, num: int) -> None:
    """Delete the copy of context number ``num``. It goes with the row of the context, too."""
    con.execute("DELETE FROM text_keys WHERE num = ?", (num,))


def read_key_copies(con: sqlite3.Connection) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, id and wrapped key of each context that has a copy that is right, or could be put right. Places that
    cannot be read are left out."""
    for *values, checksum in TableReader(con, "text_keys", _COLUMNS):
        right = values if row_checksum(values) == checksum else without_flip(values, checksum)
        match right:
            case [int(num), bytes(ctx), bytes(wrapped)] if is_text_key(wrapped):
                yield num, ctx, wrapped


def has_key_copy(con: sqlite3.Connection, num: int, ctx: str, wrapped: bytes) -> bool:
    """Whether the copy of context number ``num`` is as it should be."""
    query = "SELECT num, CAST(id AS BLOB), CAST(wrapped AS BLOB), CAST(checksum AS BLOB) FROM text_keys WHERE num = ?"
    expected: tuple[Value, ...] = (num, ctx.encode(), wrapped)
    found: object = con.execute(query, (num,)).fetchone()
    return found == (*expected, row_checksum(expected))
