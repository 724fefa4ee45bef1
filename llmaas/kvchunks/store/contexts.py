"""The tables ``contexts`` and ``spans``: contexts and their tokens, which may never be lost.

Law: every change is one durable transaction that writes the checksums of the rows it touches, and nothing is read
without comparing them. What one context has lost is no other's trouble.
"""

from __future__ import annotations

import logging
import sqlite3
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmaas.errors import BadRequest, ContextDamaged, ContextExists, StoreFailed, UnknownContext
from llmaas.kvchunks.store.chain import Chain, RawSpan, start
from llmaas.kvchunks.store.context_rows import RowState, StoredContext, follow, read_contexts
from llmaas.kvchunks.store.context_writes import (
    cut_spans,
    insert_context,
    insert_spans,
    last_chain,
    next_number,
    signed,
    update_context,
)
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.message_counts import MessageCount, count_messages
from llmaas.kvchunks.store.rows import ContextRow, ContextSummary, KeyedTurn, ModelName, Span
from llmaas.kvchunks.store.tokens import unpack
from llmaas.kvchunks.store.ttl_rows import forget_ttl, insert_ttl, with_ttls
from llmaas.kvchunks.store.turn_rows import context_grew, context_rewritten, find_turn, forget_turns, insert_turn
from llmaas.records import ContextId

log = logging.getLogger(__name__)


class ContextTables:
    """Contexts with their spans. ``Store`` says what each method does and raises."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._damaged: dict[ContextId, StoredContext] = {}
        """Rows that ``contexts`` found to be damaged: finding out again takes as long as that took."""

    def create(self, row: ContextRow, spans: Sequence[Span]) -> None:
        with self._index.write(durable=True) as txn:
            _insert_whole(txn.con, row, spans)

    def fork(self, src: ContextId, row: ContextRow) -> None:
        with self._index.write(durable=True) as txn:
            old = self._find_whole(txn.con, src)
            _insert_whole(txn.con, row, [span.as_span() for span in _read_spans(txn.con, old)])

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
        turn: KeyedTurn | None = None,
    ) -> int:
        """``replace``: the spans that are there are deleted first."""
        with self._index.write(durable=True) as txn:
            old = self._find_whole(txn.con, ctx)
            n_tokens, last = old.row.n_tokens, old.chain
            if n_tokens != expect:
                raise StoreFailed(
                    f"context {ctx} holds {n_tokens} tokens where {expect} were expected; nothing was changed",
                    hint="Two writers changed one context at once, which is a fault of llmaas; try again.",
                )
            if replace:
                txn.con.execute("DELETE FROM spans WHERE context = ?", (old.num,))
                n_tokens, last = 0, start(ctx)
            n_tokens += sum(len(span.tokens) for span in spans)
            rows = signed(last, spans)
            insert_spans(txn.con, old.num, rows)
            update_context(txn.con, old, n_tokens, rows[-1].chain if rows else last, now, adapter, model)
            if model is not None:
                forget_turns(txn.con, old.num)
            elif replace:
                context_rewritten(txn.con, old, n_tokens)
            else:
                context_grew(txn.con, old)
            if turn is not None:
                insert_turn(txn.con, old, turn)
        return n_tokens

    def turn(self, ctx: ContextId, key: str) -> KeyedTurn | None:
        with self._index.read() as con:
            con.execute("BEGIN")
            return find_turn(con, self._find_whole(con, ctx), key)

    def truncate(self, ctx: ContextId, n_tokens: int, now: float) -> list[Span]:
        with self._index.write(durable=True) as txn:
            old = self._find_whole(txn.con, ctx)
            if not 0 <= n_tokens <= old.row.n_tokens:
                raise BadRequest(f"context {ctx} has {old.row.n_tokens} tokens; it cannot be cut to {n_tokens}")
            # Read before the commit: a caller who learns of a failure must find everything as it was.
            spans = _read_spans(txn.con, old)
            if n_tokens < old.row.n_tokens:
                spans = cut_spans(txn.con, old, spans, n_tokens)
            update_context(txn.con, old, n_tokens, last_chain(ctx, spans), now)
            forget_turns(txn.con, old.num, n_tokens)
            return [span.as_span() for span in spans]

    def delete(self, ctx: ContextId, also: Callable[[Txn], None]) -> None:
        """Delete a context and its spans; ``also`` deletes what else goes with it, in the same transaction."""
        with self._index.write(durable=True) as txn:
            found = _find(txn.con, ctx)
            txn.con.execute("DELETE FROM contexts WHERE num = ?", (found.rowid,))  # its spans go with it
            if found.num != found.rowid:
                txn.con.execute("DELETE FROM spans WHERE context = ?", (found.num,))
                forget_turns(txn.con, found.num)
                forget_ttl(txn.con, found.num)
            also(txn)
        self._damaged.pop(ctx, None)

    def rename_vocab(self, old: str, new: str) -> int:
        with self._index.write(durable=True) as txn:
            found = [c for c in read_contexts(txn.con) if c.whole and c.row.vocab == old]
            for context in found:
                row = context.row
                name = ModelName(row.model, new)
                update_context(txn.con, context, row.n_tokens, context.chain, row.last_used, model=name)
            return len(found)

    def contexts(self) -> list[ContextRow]:
        with self._index.read() as con:
            return [context.row for context in self._listed(con)]

    def summaries(self) -> list[ContextSummary]:
        with self._index.read() as con:
            con.execute("BEGIN")
            found, counts = self._listed(con), count_messages(con)
        none = MessageCount()
        return [
            ContextSummary(c.row, *counts.get(c.num, none), damage="" if c.whole else _row_damage(c)) for c in found
        ]

    def _listed(self, con: sqlite3.Connection) -> list[StoredContext]:
        """All contexts that have a name, oldest first. What is wrong with rows is said."""
        found = list(with_ttls(con, read_contexts(con)))
        self._damaged = {context.row.id: context for context in found if context.named and not context.whole}
        for context in found:
            if not context.named:
                log.error("a context (row %d) lost its name on disk: run 'llmaas doctor --repair'", context.rowid)
            elif context.state is not RowState.SOUND or not context.whole:
                log.error("%s: its row is %s on disk: run 'llmaas doctor --repair'", context, context.state.value)
        return sorted((c for c in found if c.named), key=lambda context: context.row.created)

    def spans(self, ctx: ContextId) -> list[Span]:
        return [span.as_span() for span in self._spans(ctx)]

    def tokens(self, ctx: ContextId) -> array[int]:
        return unpack(b"".join(span.tokens for span in self._spans(ctx) if isinstance(span.tokens, bytes)))

    def _spans(self, ctx: ContextId) -> list[RawSpan]:
        with self._index.read() as con:
            con.execute("BEGIN")
            return _read_spans(con, self._find_whole(con, ctx))

    def _find_whole(self, con: sqlite3.Connection, ctx: ContextId) -> StoredContext:
        """Raises UnknownContext, ContextDamaged."""
        found = self._damaged.get(ctx) or _find(con, ctx)
        if not found.whole:
            raise ContextDamaged(_row_damage(found))
        return found


# -- reading


def _row_damage(found: StoredContext) -> str:
    return f"{found} is damaged on disk: its row in the index is not what was written"


def _find(con: sqlite3.Connection, ctx: ContextId) -> StoredContext:
    """A context, in whatever state its row is. Raises UnknownContext."""
    # First by the index. That, or the id in the row, may be damaged: then among all.
    for where, values in (("WHERE id = ?", (ctx,)), ("", ())):
        for found in read_contexts(con, where, values):
            if found.row.id == ctx:
                return found
    raise UnknownContext(f"there is no context {ctx}")


def _read_spans(con: sqlite3.Connection, context: StoredContext) -> list[RawSpan]:
    """All spans. Raises ContextDamaged if one is missing, or was altered and cannot be put right."""
    chain = Chain(context.row.id)
    spans = list(follow(con, context.num, chain, context.chain))
    said = context.row.n_tokens
    if chain.value != context.chain or chain.n_tokens != said:
        raise ContextDamaged(f"{context} is damaged on disk: {chain.n_tokens} of {said} tokens could be read")
    if chain.mended:
        log.error("%s: bits of %d spans flipped on disk, and were put right in memory", context, chain.mended)
    return spans


def _insert_whole(con: sqlite3.Connection, row: ContextRow, spans: Sequence[Span]) -> None:
    """Insert a context with its spans. Raises ContextExists."""
    rows = signed(start(row.id), spans)
    row = replace(row, n_tokens=sum(len(span.tokens) for span in spans))
    num = next_number(con, "contexts", "num")
    try:
        insert_context(con, num, row, rows[-1].chain if rows else start(row.id))
    except sqlite3.IntegrityError as error:
        raise ContextExists(
            f"app {row.app} already has a context {row.name!r} (or the id {row.id} is taken)"
        ) from error
    insert_spans(con, num, rows)
    insert_ttl(con, num, row.id, row.ttl)


def recount(index: Index, num: int) -> None:
    """Correct a context's number of tokens, if nothing else is wrong with its row."""
    with index.write(durable=True) as txn:
        for found in read_contexts(txn.con, "WHERE num = ?", (num,)):
            if found.state is RowState.RECOUNTED:
                update_context(txn.con, found, found.row.n_tokens, found.chain, found.row.last_used)
