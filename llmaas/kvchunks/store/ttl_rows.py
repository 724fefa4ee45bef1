"""The table ``ttls``: how long contexts stay that nobody uses. Most have no row: they stay until they are deleted.

Law: in the transaction of the caller. A row that does not match its checksum is as good as not there, and said: a
context is never deleted because of a damaged value.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from llmaas.kvchunks.store.context_rows import StoredContext, read_contexts
from llmaas.kvchunks.store.sums import Value, row_checksum, without_flip
from llmaas.kvchunks.store.text_seal import IN_CLEAR
from llmaas.records import ContextId

log = logging.getLogger(__name__)

_ALL = "SELECT context, ttl, checksum FROM ttls"


def insert_ttl(con: sqlite3.Connection, num: int, ctx: ContextId, ttl: float | None) -> None:
    """Store the seconds of context number ``num``; None: it has none."""
    if ttl is not None:
        values = (num, float(ttl))
        con.execute("INSERT OR REPLACE INTO ttls VALUES (?, ?, ?)", (*values, row_checksum((ctx, *values))))


def forget_ttl(con: sqlite3.Connection, num: int) -> None:
    """The context stays from now on, or is gone."""
    con.execute("DELETE FROM ttls WHERE context = ?", (num,))


def with_ttls(con: sqlite3.Connection, contexts: Iterable[StoredContext]) -> Iterator[StoredContext]:
    """The contexts, with what the table says of each."""
    rows = _rows(con)
    for context in contexts:
        raw = rows.get(context.num)
        yield context if raw is None else replace(context, row=replace(context.row, ttl=_right(context, *raw)))


def has_damaged_ttl(con: sqlite3.Connection, context: StoredContext) -> bool:
    """Whether the context's row does not match its checksum."""
    found = con.execute(f"{_ALL} WHERE context = ?", (context.num,)).fetchall()
    return any(row_checksum((context.row.id, num, ttl)) != checksum for num, ttl, checksum in found)


def take_ttls(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Take the rows of a damaged index into the new one, which has its contexts already. What cannot be read is
    forgotten."""
    with suppress(sqlite3.DatabaseError):
        for context in with_ttls(old, list(read_contexts(new, IN_CLEAR))):
            insert_ttl(new, context.num, context.row.id, context.row.ttl)


def _rows(con: sqlite3.Connection) -> dict[int, tuple[Value, Value]]:
    return {num: (ttl, checksum) for num, ttl, checksum in con.execute(_ALL)}


def _right(context: StoredContext, ttl: Value, checksum: Value) -> float | None:
    """The seconds of a row; None if it is damaged and cannot be put right."""
    signed = (context.row.id, context.num, ttl)
    right = signed if row_checksum(signed) == checksum else without_flip(signed, checksum)
    if right is None or not isinstance(right[-1], float):
        log.error("%s: how long it stays unused is damaged on disk, and forgotten: it stays", context)
        return None
    return right[-1]
