"""The tables ``contexts`` and ``spans``: contexts and their tokens, which may never be lost.

Law: every change is one durable transaction, and a context's ``n_tokens`` is the sum of its spans' tokens. Tokens are
stored as little-endian int32.
"""

from __future__ import annotations

import sqlite3
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence

from llmaas.errors import BadRequest, ContextExists, StoreFailed, UnknownContext
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.rows import ContextRow, ModelName, Span
from llmaas.records import AppId, ContextId

_COLUMNS = "id, app, name, model, vocab, created, last_used, n_tokens, adapter"


class ContextTables:
    """Contexts with their spans. ``Store`` says what each method does and raises."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def create(self, row: ContextRow, spans: Sequence[Span]) -> None:
        with self._index.write(durable=True) as txn:
            num = _insert_context(txn.con, row, sum(len(span.tokens) for span in spans))
            _insert_spans(txn.con, num, spans)

    def fork(self, src: ContextId, row: ContextRow) -> None:
        with self._index.write(durable=True) as txn:
            old, n_tokens = _find(txn.con, src)
            new = _insert_context(txn.con, row, n_tokens)
            txn.con.execute(
                "INSERT INTO spans (context, tokens, role, text, open)"
                " SELECT ?, tokens, role, text, open FROM spans WHERE context = ? ORDER BY id",
                (new, old),
            )

    def append(
        self,
        ctx: ContextId,
        spans: Sequence[Span],
        *,
        expect: int,
        now: float,
        adapter: str | None = None,
        model: ModelName | None = None,
        replace: bool = False,
    ) -> int:
        """``replace``: the spans that are there are deleted first."""
        with self._index.write(durable=True) as txn:
            num, n_tokens = _find(txn.con, ctx)
            if n_tokens != expect:
                raise StoreFailed(
                    f"context {ctx} holds {n_tokens} tokens where {expect} were expected; nothing was changed",
                    hint="Two writers changed one context at once, which is a fault of llmaas; try again.",
                )
            if replace:
                txn.con.execute("DELETE FROM spans WHERE context = ?", (num,))
                n_tokens = 0
            n_tokens += sum(len(span.tokens) for span in spans)
            _insert_spans(txn.con, num, spans)
            txn.con.execute(
                "UPDATE contexts SET n_tokens = ?, last_used = ?, adapter = coalesce(?, adapter),"
                " model = coalesce(?, model), vocab = coalesce(?, vocab) WHERE num = ?",
                (n_tokens, now, adapter, *(model or (None, None)), num),
            )
        return n_tokens

    def truncate(self, ctx: ContextId, n_tokens: int, now: float) -> list[Span]:
        with self._index.write(durable=True) as txn:
            num, before = _find(txn.con, ctx)
            if not 0 <= n_tokens <= before:
                raise BadRequest(f"context {ctx} has {before} tokens; it cannot be cut to {n_tokens}")
            if n_tokens < before:
                _cut_spans(txn.con, num, n_tokens)
            txn.con.execute("UPDATE contexts SET n_tokens = ?, last_used = ? WHERE num = ?", (n_tokens, now, num))
            # Read before the commit: a caller who learns of a failure must find everything as it was.
            return _spans(txn.con, num)

    def delete(self, ctx: ContextId, also: Callable[[Txn], None]) -> None:
        """Delete a context and its spans; ``also`` deletes what else goes with it, in the same transaction."""
        with self._index.write(durable=True) as txn:
            num, _ = _find(txn.con, ctx)
            txn.con.execute("DELETE FROM contexts WHERE num = ?", (num,))  # its spans go with it
            also(txn)

    def rename_vocab(self, old: str, new: str) -> int:
        with self._index.write(durable=True) as txn:
            return txn.con.execute("UPDATE contexts SET vocab = ? WHERE vocab = ?", (new, old)).rowcount

    def contexts(self) -> list[ContextRow]:
        with self._index.read() as con:
            rows = con.execute(f"SELECT {_COLUMNS} FROM contexts ORDER BY created, num").fetchall()
        return [ContextRow(ContextId(r[0]), AppId(r[1]), *r[2:]) for r in rows]

    def spans(self, ctx: ContextId) -> list[Span]:
        with self._index.read() as con:
            con.execute("BEGIN")
            return _spans(con, _find(con, ctx)[0])

    def tokens(self, ctx: ContextId) -> array[int]:
        with self._index.read() as con:
            con.execute("BEGIN")
            num, _ = _find(con, ctx)
            rows = con.execute("SELECT tokens FROM spans WHERE context = ? ORDER BY id", (num,)).fetchall()
        return unpack(b"".join(row[0] for row in rows))


def pack(tokens: Iterable[int]) -> bytes:
    """Token ids as little-endian int32. Raises OverflowError for a number that does not fit."""
    ids = array("i", tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def unpack(blob: bytes) -> array[int]:
    """The token ids that ``pack`` wrote, typecode 'i'."""
    ids = array("i")
    ids.frombytes(blob)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def _find(con: sqlite3.Connection, ctx: ContextId) -> tuple[int, int]:
    """The row number of a context, and how many tokens it has. Raises UnknownContext."""
    row = con.execute("SELECT num, n_tokens FROM contexts WHERE id = ?", (ctx,)).fetchone()
    if row is None:
        raise UnknownContext(f"there is no context {ctx}")
    return row[0], row[1]


def _spans(con: sqlite3.Connection, num: int) -> list[Span]:
    rows = con.execute("SELECT tokens, role, text, open FROM spans WHERE context = ? ORDER BY id", (num,)).fetchall()
    return [Span(tuple(unpack(tokens)), role, text, bool(open_)) for tokens, role, text, open_ in rows]


def _insert_context(con: sqlite3.Connection, row: ContextRow, n_tokens: int) -> int:
    values = (row.id, row.app, row.name, row.model, row.vocab, row.created, row.last_used, n_tokens, row.adapter)
    try:
        done = con.execute(f"INSERT INTO contexts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    except sqlite3.IntegrityError as error:
        raise ContextExists(
            f"app {row.app} already has a context {row.name!r} (or the id {row.id} is taken)"
        ) from error
    assert done.lastrowid is not None
    return done.lastrowid


def _insert_spans(con: sqlite3.Connection, num: int, spans: Sequence[Span]) -> None:
    con.executemany(
        "INSERT INTO spans (context, tokens, role, text, open) VALUES (?, ?, ?, ?, ?)",
        [(num, pack(span.tokens), span.role, span.text, span.open) for span in spans],
    )


def _cut_spans(con: sqlite3.Connection, num: int, n_tokens: int) -> None:
    """Drop the spans that begin at ``n_tokens`` or later. A span that is cut in two keeps its tokens before the cut, as
    glue: its text would no longer say what its tokens say.
    """
    start = 0
    for span, size in con.execute(
        "SELECT id, length(tokens) / 4 FROM spans WHERE context = ? ORDER BY id", (num,)
    ).fetchall():
        if start > n_tokens or (start == n_tokens and size):
            con.execute("DELETE FROM spans WHERE context = ? AND id >= ?", (num, span))
            return
        if start + size > n_tokens:
            con.execute(
                "UPDATE spans SET tokens = substr(tokens, 1, ?), role = NULL, text = NULL, open = 0 WHERE id = ?",
                (4 * (n_tokens - start), span),
            )
        start += size
