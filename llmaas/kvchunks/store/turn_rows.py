"""The table ``turns``: the last turns of each context that were asked for with an idempotency key.

Law: in the transaction of the caller, so that a turn and its key are stored together or not at all. A row that does not
match its checksum is as good as not there, and said.

In an encrypted context the key, the request's digest (which would confirm a guess) and the result are encrypted. The
key is always encrypted to the same, so that it can be looked up.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from llmaas.kvchunks.store.context_rows import LARGEST_NUMBER, StoredContext, read_contexts
from llmaas.kvchunks.store.rows import KeyedTurn
from llmaas.kvchunks.store.sums import Value, row_checksum, without_flip
from llmaas.kvchunks.store.text_seal import IN_CLEAR, TextKey
from llmaas.records import ContextId

log = logging.getLogger(__name__)

KEPT_TURNS = 8
"""Keys that a context remembers: those of its last turns that had one."""
_READ = "number, CAST(key AS BLOB), CAST(request AS BLOB), n_spans, n_tokens, CAST(result AS BLOB), checksum"


class _TurnRow(NamedTuple):
    """What is on disk of a turn, but for its place and its checksum."""

    key: bytes
    request: bytes
    n_spans: int | None
    n_tokens: int
    result: bytes | None

    def as_turn(self, key: TextKey | None) -> KeyedTurn:
        """``key``: of its context, if that is encrypted. Raises ValueError if it does not open."""
        name, request, n_spans, n_tokens, result = self
        if key is not None:
            name, request = key.open_fixed("turn.key", name), key.open("turn.request", request)
            result = None if result is None else key.open("turn.result", result)
        return KeyedTurn(name.decode(), request, n_spans, n_tokens, result)


def _row_of(turn: KeyedTurn, key: TextKey | None) -> _TurnRow:
    request, result = turn.request, turn.result
    if key is not None:
        request = key.seal("turn.request", request)
        result = None if result is None else key.seal("turn.result", result)
    return _TurnRow(_stored_key(turn.key, key), request, turn.n_spans, turn.n_tokens, result)


def _stored_key(name: str, key: TextKey | None) -> bytes:
    return name.encode() if key is None else key.seal_fixed("turn.key", name.encode())


def find_turn(con: sqlite3.Connection, context: StoredContext, name: str, key: TextKey | None) -> KeyedTurn | None:
    """The turn that was stored with this idempotency key; None if the context remembers none.

    ``key``: of the context, if it is encrypted.
    """
    for _, row in _turns(con, context, "AND CAST(key AS BLOB) = ?", _stored_key(name, key)):
        return row.as_turn(key)
    return None


def all_turns(con: sqlite3.Connection, context: StoredContext, key: TextKey | None) -> list[KeyedTurn]:
    """All that the context remembers, oldest first. ``key``: as in ``find_turn``."""
    return [row.as_turn(key) for _, row in reversed(list(_turns(con, context)))]


def insert_turn(con: sqlite3.Connection, context: StoredContext, turn: KeyedTurn, key: TextKey | None) -> None:
    """Store the turn in place of an older one with its key, and forget what is older than the last ``KEPT_TURNS``."""
    row = _row_of(turn, key)
    con.execute("DELETE FROM turns WHERE context = ? AND CAST(key AS BLOB) = ?", (context.num, row.key))
    query = f"SELECT max(number) FROM turns WHERE context = ? AND number < {LARGEST_NUMBER}"
    number = (con.execute(query, (context.num,)).fetchone()[0] or 0) + 1
    _write(con, context, number, row)
    con.execute("DELETE FROM turns WHERE context = ? AND number <= ?", (context.num, number - KEPT_TURNS))


def context_grew(con: sqlite3.Connection, context: StoredContext) -> None:
    """The context goes on behind its turns: one that was interrupted cannot be continued any more."""
    for number, row in list(_turns(con, context, "AND result IS NULL AND n_spans IS NOT NULL")):
        _write(con, context, number, row._replace(n_spans=None))


def context_rewritten(con: sqlite3.Connection, context: StoredContext, n_tokens: int) -> None:
    """The context has ``n_tokens`` other tokens now. Where its turns end in them is not known: at the latest there."""
    for number, row in list(_turns(con, context)):
        n_spans = row.n_spans if row.result is not None else None
        _write(con, context, number, row._replace(n_spans=n_spans, n_tokens=min(row.n_tokens, n_tokens)))


def seal_turns(con: sqlite3.Connection, context: StoredContext, key: TextKey) -> None:
    """Encrypt the turns of a context in clear. Those that are damaged are forgotten."""
    rows = list(_turns(con, context))
    con.execute("DELETE FROM turns WHERE context = ?", (context.num,))
    for number, row in rows:
        _write(con, context, number, _row_of(row.as_turn(None), key), sealed=True)


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
    for context in read_contexts(new, IN_CLEAR):
        with suppress(sqlite3.DatabaseError):
            for number, row in _turns(old, context):
                if row.n_tokens <= context.row.n_tokens:
                    _write(new, context, number, row)


def _turns(
    con: sqlite3.Connection, context: StoredContext, where: str = "", *values: Value
) -> Iterator[tuple[int, _TurnRow]]:
    for number, *found, checksum in _rows(con, context, where, *values):
        row = _right_row(context.row.id, number, found, checksum)
        if row is None:
            log.error("%s: the key of a turn is damaged on disk, and forgotten", context)
        else:
            yield number, row


def _rows(con: sqlite3.Connection, context: StoredContext, where: str = "", *values: Value) -> list[tuple[Any, ...]]:
    query = f"SELECT {_READ} FROM turns WHERE context = ? {where} ORDER BY number DESC"
    return con.execute(query, (context.num, *values)).fetchall()


def _right_row(ctx: ContextId, number: int, values: Sequence[Value], checksum: Value) -> _TurnRow | None:
    """The values of a row from the key to the result; None if they are damaged and cannot be put right."""
    signed = (ctx, number, *values)
    right = signed if row_checksum(signed) == checksum else without_flip(signed, checksum)
    if right is None:
        return None
    _, _, key, request, n_spans, n_tokens, result = right
    assert isinstance(key, bytes) and isinstance(request, bytes) and isinstance(n_tokens, int)
    assert n_spans is None or isinstance(n_spans, int)
    assert result is None or isinstance(result, bytes)
    return _TurnRow(key, request, n_spans, n_tokens, result)


def _write(
    con: sqlite3.Connection, context: StoredContext, number: int, row: _TurnRow, *, sealed: bool | None = None
) -> None:
    """Insert a turn, or replace the one with this number. ``sealed``: whether it is encrypted; None: as the context."""
    in_clear = not (context.sealed if sealed is None else sealed)
    key = row.key.decode() if in_clear else row.key  # of the column's type where that can be
    con.execute(
        "INSERT OR REPLACE INTO turns (context, number, key, request, n_spans, n_tokens, result, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (context.num, number, key, *row[1:], row_checksum((context.row.id, number, *row))),
    )
