"""The table ``turns``: the last turns of each context that were asked for with an idempotency key.

Law: in the transaction of the caller, so that a turn and its key are stored together or not at all. A row that does not
match its checksum is as good as not there, and said.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from llmaas.kvchunks.store.context_rows import LARGEST_NUMBER, StoredContext, read_contexts
from llmaas.kvchunks.store.rows import KeyedTurn
from llmaas.kvchunks.store.sums import Value, row_checksum, without_flip
from llmaas.records import ContextId

log = logging.getLogger(__name__)

KEPT_TURNS = 8
"""Keys that a context remembers: those of its last turns that had one."""
_READ = "number, CAST(key AS BLOB), CAST(request AS BLOB), n_spans, n_tokens, CAST(result AS BLOB), checksum"


def find_turn(con: sqlite3.Connection, context: StoredContext, key: str) -> KeyedTurn | None:
    """The turn that was stored with this key; None if the context remembers none."""
    for _, turn in _turns(con, context, "AND key = ?", key):
        return turn
    return None


def insert_turn(con: sqlite3.Connection, context: StoredContext, turn: KeyedTurn) -> None:
    """Store the turn in place of an older one with its key, and forget what is older than the last ``KEPT_TURNS``."""
    con.execute("DELETE FROM turns WHERE context = ? AND key = ?", (context.num, turn.key))
    query = f"SELECT max(number) FROM turns WHERE context = ? AND number < {LARGEST_NUMBER}"
    number = (con.execute(query, (context.num,)).fetchone()[0] or 0) + 1
    _write(con, context, number, turn)
    con.execute("DELETE FROM turns WHERE context = ? AND number <= ?", (context.num, number - KEPT_TURNS))


def context_grew(con: sqlite3.Connection, context: StoredContext) -> None:
    """The context goes on behind its turns: one that was interrupted cannot be continued any more."""
    for number, turn in list(_turns(con, context, "AND result IS NULL AND n_spans IS NOT NULL")):
        _write(con, context, number, replace(turn, n_spans=None))


def context_rewritten(con: sqlite3.Connection, context: StoredContext, n_tokens: int) -> None:
    """The context has ``n_tokens`` other tokens now. Where its turns end in them is not known: at the latest there."""
    for number, turn in list(_turns(con, context)):
        n_spans = turn.n_spans if turn.result is not None else None
        _write(con, context, number, replace(turn, n_spans=n_spans, n_tokens=min(turn.n_tokens, n_tokens)))


def forget_turns(con: sqlite3.Connection, num: int, beyond: int = -1) -> None:
    """Forget the turns of context number ``num`` that end behind ``beyond`` tokens."""
    con.execute("DELETE FROM turns WHERE context = ? AND n_tokens > ?", (num, beyond))


def damaged_turns(con: sqlite3.Connection, context: StoredContext) -> Iterator[int]:
    """The numbers of the context's turns that do not match their checksums."""
    for number, *values, checksum in _rows(con, context):
        if row_checksum((context.row.id, number, *values)) != checksum:
            yield number


def drop_turns(con: sqlite3.Connection, num: int, numbers: Sequence[int]) -> None:
    """Forget these turns of context number ``num``."""
    con.executemany("DELETE FROM turns WHERE context = ? AND number = ?", [(num, number) for number in numbers])


def take_turns(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Take the turns of a damaged index into the new one, which has its contexts already. Those that cannot be read,
    and those of which the conversation has lost a part, are forgotten."""
    for context in read_contexts(new):
        with suppress(sqlite3.DatabaseError):
            for number, turn in _turns(old, context):
                if turn.n_tokens <= context.row.n_tokens:
                    _write(new, context, number, turn)


def _turns(
    con: sqlite3.Connection, context: StoredContext, where: str = "", *values: Value
) -> Iterator[tuple[int, KeyedTurn]]:
    for number, *found, checksum in _rows(con, context, where, *values):
        turn = _right_turn(context.row.id, number, found, checksum)
        if turn is None:
            log.error("%s: the key of a turn is damaged on disk, and forgotten", context)
        else:
            yield number, turn


def _rows(con: sqlite3.Connection, context: StoredContext, where: str = "", *values: Value) -> list[tuple[Any, ...]]:
    query = f"SELECT {_READ} FROM turns WHERE context = ? {where} ORDER BY number DESC"
    return con.execute(query, (context.num, *values)).fetchall()


def _right_turn(ctx: ContextId, number: int, values: Sequence[Value], checksum: Value) -> KeyedTurn | None:
    """The turn of a row, with its values from the key to the result; None if it is damaged and cannot be put right."""
    signed = (ctx, number, *values)
    right = signed if row_checksum(signed) == checksum else without_flip(signed, checksum)
    if right is None:
        return None
    _, _, key, request, n_spans, n_tokens, result = right
    assert isinstance(key, bytes) and isinstance(request, bytes) and isinstance(n_tokens, int)
    assert n_spans is None or isinstance(n_spans, int)
    assert result is None or isinstance(result, bytes)
    return KeyedTurn(key.decode(), request, n_spans, n_tokens, result)


def _write(con: sqlite3.Connection, context: StoredContext, number: int, turn: KeyedTurn) -> None:
    """Insert a turn, or replace the one with this number."""
    values = (turn.key, turn.request, turn.n_spans, turn.n_tokens, turn.result)
    con.execute(
        "INSERT OR REPLACE INTO turns (context, number, key, request, n_spans, n_tokens, result, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (context.num, number, *values, row_checksum((context.row.id, number, *values))),
    )
