"""The table ``moves``: contexts that go to another node, or came from one.

Law: in the transaction of the caller. A row that does not match its checksum is as good as not there, and said: a
context from elsewhere then finds none of its chunks, and one that was to leave stays.
"""

from __future__ import annotations

import enum
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from llmaas.frozen import frozen
from llmaas.kvchunks.store.context_rows import StoredContext
from llmaas.kvchunks.store.sums import row_checksum
from llmaas.records import ContextId

log = logging.getLogger(__name__)


class MoveState(enum.IntEnum):
    LEAVING = 1
    """The other node may have the context by now: nobody may use it here until that node has said."""
    ARRIVED = 2
    """The context is here, and the node that it came from may ask whether it is."""
    SETTLED = 3
    """The other node knows. The row says where the context came from, as long as it is here."""


@frozen
class MoveRow:
    """``move``: its name, which both nodes know; ``node``: fingerprint of the other one."""

    move: str
    node: str
    context: ContextId
    state: MoveState


def insert_move(con: sqlite3.Connection, row: MoveRow) -> None:
    """Store a move, in place of what was known of it."""
    values = (row.move, row.node, row.context, int(row.state))
    con.execute("INSERT OR REPLACE INTO moves VALUES (?, ?, ?, ?, ?)", (*values, row_checksum(values)))


def forget_move(con: sqlite3.Connection, move: str) -> None:
    con.execute("DELETE FROM moves WHERE move = ?", (move,))


def context_is_gone(con: sqlite3.Connection, ctx: ContextId) -> None:
    """Of a context that is deleted only what another node may ask for stays."""
    con.execute("DELETE FROM moves WHERE context = ? AND state = ?", (ctx, int(MoveState.SETTLED)))


def settle_move(con: sqlite3.Connection, row: MoveRow) -> None:
    """The node that the context came from will not ask any more."""
    if con.execute("SELECT 1 FROM contexts WHERE id = ?", (row.context,)).fetchone():
        insert_move(con, replace(row, state=MoveState.SETTLED))
    else:
        forget_move(con, row.move)


def read_moves(con: sqlite3.Connection) -> Iterator[MoveRow]:
    """All moves whose rows are right."""
    for move, node, context, state, checksum in con.execute("SELECT * FROM moves").fetchall():
        if row_checksum((move, node, context, state)) == checksum and state in MoveState.__members__.values():
            yield MoveRow(move, node, ContextId(context), MoveState(state))
        else:
            log.error("what is known of a move of the context %s is damaged on disk, and forgotten", context)


def with_origins(con: sqlite3.Connection, contexts: Iterable[StoredContext]) -> Iterator[StoredContext]:
    """The contexts, with the nodes that they came from."""
    origins = {row.context: row.node for row in read_moves(con) if row.state is not MoveState.LEAVING}
    for context in contexts:
        origin = origins.get(context.row.id)
        yield context if origin is None else replace(context, row=replace(context.row, origin=origin))


def take_moves(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Take the rows of a damaged index into the new one. What cannot be read is forgotten."""
    with suppress(sqlite3.DatabaseError):
        for row in read_moves(old):
            insert_move(new, row)
