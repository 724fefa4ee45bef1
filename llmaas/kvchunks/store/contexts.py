"""The tables ``contexts`` and ``spans``: contexts and their tokens, which may never be lost.

Law: every change is one durable transaction that writes the checksums of the rows it touches, and nothing is read
without comparing them. What one context has lost is no other's trouble.
"""

from __future__ import annotations

import logging
import sqlite3
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from llmaas.errors import BadRequest, ContextDamaged, ContextExists, StoreFailed, UnknownContext
from llmaas.kvchunks.store.chain import RawSpan, start
from llmaas.kvchunks.store.context_rows import RowState, StoredContext, follow, read_contexts
from llmaas.kvchunks.store.context_writes import (
    cut_spans,
    insert_context,
    insert_spans,
    last_chain,
    next_number,
    rewrite_context,
    signed,
    update_context,
)
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.key_copies import delete_key_copy, insert_key_copy
from llmaas.kvchunks.store.message_counts import MessageCount, count_messages
from llmaas.kvchunks.store.move_rows import MoveRow, context_is_gone, insert_move, with_origins
from llmaas.kvchunks.store.rows import ContextRow, ContextSummary, KeyedTurn, ModelName, Span
from llmaas.kvchunks.store.text_seal import IN_CLEAR, RowSeal, Sealing, TextKey
from llmaas.kvchunks.store.tokens import unpack
from llmaas.kvchunks.store.ttl_rows import forget_ttl, insert_ttl, with_ttls
from llmaas.kvchunks.store.turn_rows import (
    all_turns,
    context_grew,
    context_rewritten,
    find_turn,
    forget_turns,
    insert_turn,
)
from llmaas.records import ContextId

log = logging.getLogger(__name__)


class ContextTables:
    """Contexts with their spans. ``Store`` says what each method does and raises."""

    def __init__(self, index: Index, sealing: Sealing) -> None:
        self._index, self._sealing = index, sealing
        self._damaged: dict[ContextId, StoredContext] = {}
        """Rows that ``contexts`` found to be damaged: finding out again takes as long as that took."""

    def create(
        self,
        row: ContextRow,
        spans: Sequence[Span],
        move: MoveRow | None = None,
        turns: Sequence[KeyedTurn] = (),
    ) -> None:
        with self._index.write(durable=True) as txn:
            self._insert_whole(txn.con, row, spans)
            if move is not None:
                insert_move(txn.con, move)
            self._insert_turns(txn, row.id, turns)

    def adopt(self, row: ContextRow, spans: Sequence[Span], move: MoveRow, turns: Sequence[KeyedTurn] = ()) -> None:
        with self._index.write(durable=True) as txn:
            old = self._find_whole(txn.con, row.id)
            _refuse_name(txn.con, row)
            key, wrapped = self._key(old), old.seal.text_key
            rows = signed(start(row.id), spans, key)
            txn.con.execute("DELETE FROM spans WHERE context = ?", (old.num,))
            insert_spans(txn.con, old.num, rows)
            row = replace(row, n_tokens=sum(len(span.tokens) for span in spans))
            seal = RowSeal(row.name if key is None else self._sealing.seal_name(row.app, row.name), wrapped)
            try:
                rewrite_context(txn.con, old.num, row, rows[-1].chain if rows else start(row.id), seal)
            except sqlite3.IntegrityError as error:
                raise _taken(row) from error
            forget_turns(txn.con, old.num)
            forget_ttl(txn.con, old.num)
            insert_ttl(txn.con, old.num, row.id, row.ttl)
            insert_move(txn.con, move)
            self._insert_turns(txn, row.id, turns)

    def _insert_turns(self, txn: Txn, ctx: ContextId, turns: Sequence[KeyedTurn]) -> None:
        if turns:
            context = self._find_whole(txn.con, ctx)
            for turn in turns:
                insert_turn(txn.con, context, turn, self._key(context))

    def fork(self, src: ContextId, row: ContextRow) -> None:
        with self._index.write(durable=True) as txn:
            old = self._find_whole(txn.con, src)
            spans = _opened(old, _read_spans(txn.con, old), self._key(old))
            self._insert_whole(txn.con, row, spans)

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
            key = self._key(old)
            rows = signed(last, spans, key)
            insert_spans(txn.con, old.num, rows)
            update_context(txn.con, old, n_tokens, rows[-1].chain if rows else last, now, adapter, model)
            if model is not None:
                forget_turns(txn.con, old.num)
            elif replace:
                context_rewritten(txn.con, old, n_tokens)
            else:
                context_grew(txn.con, old)
            if turn is not None:
                insert_turn(txn.con, old, turn, key)
        return n_tokens

    def turn(self, ctx: ContextId, name: str) -> KeyedTurn | None:
        with self._index.read() as con:
            con.execute("BEGIN")
            found = self._find_whole(con, ctx)
            return find_turn(con, found, name, self._key(found))

    def turns(self, ctx: ContextId) -> list[KeyedTurn]:
        with self._index.read() as con:
            con.execute("BEGIN")
            found = self._find_whole(con, ctx)
            return all_turns(con, found, self._key(found))

    def truncate(self, ctx: ContextId, n_tokens: int, now: float) -> list[Span]:
        with self._index.write(durable=True) as txn:
            old = self._find_whole(txn.con, ctx)
            if not 0 <= n_tokens <= old.row.n_tokens:
                raise BadRequest(f"context {ctx} has {old.row.n_tokens} tokens; it cannot be cut to {n_tokens}")
            # Read before the commit: a caller who learns of a failure must find everything as it was.
            spans, key = _read_spans(txn.con, old), self._key(old)
            if n_tokens < old.row.n_tokens:
                spans = cut_spans(txn.con, old, spans, n_tokens, key)
            update_context(txn.con, old, n_tokens, last_chain(ctx, spans), now)
            forget_turns(txn.con, old.num, n_tokens)
            return _opened(old, spans, key)

    def delete(self, ctx: ContextId, also: Callable[[Txn], None]) -> None:
        """Delete a context and its spans; ``also`` deletes what else goes with it, in the same transaction."""
        with self._index.write(durable=True) as txn:
            found = self._find(txn.con, ctx)
            txn.con.execute("DELETE FROM contexts WHERE num = ?", (found.rowid,))  # its spans and keys go with it
            if found.num != found.rowid:
                txn.con.execute("DELETE FROM spans WHERE context = ?", (found.num,))
                forget_turns(txn.con, found.num)
                forget_ttl(txn.con, found.num)
                delete_key_copy(txn.con, found.num)
            context_is_gone(txn.con, ctx)
            also(txn)
        self._damaged.pop(ctx, None)

    def rename_vocab(self, old: str, new: str) -> int:
        with self._index.write(durable=True) as txn:
            found = [c for c in read_contexts(txn.con, self._sealing) if c.whole and c.row.vocab == old]
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
        return [_summary(context, counts.get(context.num, MessageCount())) for context in found]

    def _listed(self, con: sqlite3.Connection) -> list[StoredContext]:
        """All contexts whose name is known, oldest first. What is wrong with rows is said."""
        found = list(with_origins(con, with_ttls(con, read_contexts(con, self._sealing))))
        self._damaged = {context.row.id: context for context in found if context.named and not context.whole}
        for context in found:
            if not (context.named and context.name_opens):
                log.error("a context (row %d) lost its name on disk: run 'llmaas doctor --repair'", context.rowid)
            elif context.state is not RowState.SOUND or not context.whole:
                log.error("%s: its row is %s on disk: run 'llmaas doctor --repair'", context, context.state.value)
        return sorted((c for c in found if c.named and c.name_opens), key=lambda context: context.row.created)

    def spans(self, ctx: ContextId) -> list[Span]:
        found, spans = self._spans(ctx)
        return _opened(found, spans, self._key(found))

    def tokens(self, ctx: ContextId) -> array[int]:
        found, spans = self._spans(ctx)
        key = self._key(found)
        with _damage_of(found):
            return unpack(b"".join(span.packed_tokens(key) for span in spans))

    def _spans(self, ctx: ContextId) -> tuple[StoredContext, list[RawSpan]]:
        with self._index.read() as con:
            con.execute("BEGIN")
            found = self._find_whole(con, ctx)
            return found, _read_spans(con, found)

    def _find_whole(self, con: sqlite3.Connection, ctx: ContextId) -> StoredContext:
        """Raises UnknownContext, ContextDamaged."""
        found = self._damaged.get(ctx) or self._find(con, ctx)
        if not found.whole:
            raise ContextDamaged(_row_damage(found))
        return found

    def _find(self, con: sqlite3.Connection, ctx: ContextId) -> StoredContext:
        """A context, in whatever state its row is. Raises UnknownContext."""
        # First by the index. That, or the id in the row, may be damaged: then among all.
        for where, values in (("WHERE id = ?", (ctx,)), ("", ())):
            for found in read_contexts(con, self._sealing, where, values):
                if found.row.id == ctx:
                    return found
        raise UnknownContext(f"there is no context {ctx}")

    def _key(self, context: StoredContext) -> TextKey | None:
        """None if the context is in clear. Raises ContextDamaged."""
        if context.seal.text_key is None:
            return None
        key = self._sealing.key(context.row.id, context.seal.text_key)
        if key is None:
            raise ContextDamaged(f"{context} cannot be read: its key does not open with the master key")
        return key

    def _insert_whole(self, con: sqlite3.Connection, row: ContextRow, spans: Sequence[Span]) -> None:
        """Insert a context with its spans. Raises ContextExists."""
        seal, key = self._sealing.new(row.id, row.app, row.name)
        rows = signed(start(row.id), spans, key)
        row = replace(row, n_tokens=sum(len(span.tokens) for span in spans))
        _refuse_name(con, row)
        num = next_number(con, "contexts", "num")
        try:
            insert_context(con, num, row, rows[-1].chain if rows else start(row.id), seal)
        except sqlite3.IntegrityError as error:
            raise _taken(row) from error
        insert_spans(con, num, rows)
        insert_ttl(con, num, row.id, row.ttl)


def _refuse_name(con: sqlite3.Connection, row: ContextRow) -> None:
    """Raises ContextExists. The table's own rule sees a name in clear and the same one encrypted as two."""
    if con.execute("SELECT 1 FROM contexts WHERE app = ? AND name = ?", (row.app, row.name)).fetchone():
        raise _taken(row)


def _taken(row: ContextRow) -> ContextExists:
    return ContextExists(f"app {row.app} already has a context {row.name!r} (or the id {row.id} is taken)")


# -- reading


def _row_damage(found: StoredContext) -> str:
    return f"{found} is damaged on disk: its row in the index is not what was written"


def _summary(context: StoredContext, count: MessageCount) -> ContextSummary:
    damage = "" if context.whole else _row_damage(context)
    return ContextSummary(context.row, count.messages, count.text_bytes(sealed=context.sealed), damage)


@contextmanager
def _damage_of(context: StoredContext) -> Iterator[None]:
    """Turns a ValueError of what cannot be values of a span into ContextDamaged."""
    try:
        yield
    except ValueError as error:
        raise ContextDamaged(f"{context} is damaged on disk: {error}") from error


def _opened(context: StoredContext, spans: Sequence[RawSpan], key: TextKey | None) -> list[Span]:
    """Raises ContextDamaged."""
    with _damage_of(context):
        return [span.as_span(key) for span in spans]


def _read_spans(con: sqlite3.Connection, context: StoredContext) -> list[RawSpan]:
    """All spans. Raises ContextDamaged if one is missing, or was altered and cannot be put right."""
    chain = context.chain_start()
    spans = list(follow(con, context.num, chain, context.chain))
    said = context.row.n_tokens
    if chain.value != context.chain or chain.n_tokens != said:
        raise ContextDamaged(f"{context} is damaged on disk: {chain.n_tokens} of {said} tokens could be read")
    if chain.mended:
        log.error("%s: bits of %d spans flipped on disk, and were put right in memory", context, chain.mended)
    return spans


def recount(index: Index, num: int) -> None:
    """Correct a context's number of tokens, if nothing else is wrong with its row."""
    with index.write(durable=True) as txn:
        for found in read_contexts(txn.con, IN_CLEAR, "WHERE num = ?", (num,)):
            if found.state is RowState.RECOUNTED:
                update_context(txn.con, found, found.row.n_tokens, found.chain, found.row.last_used)


def copy_key(index: Index, num: int) -> None:
    """Write the copy of a context's key anew, from its row."""
    with index.write(durable=True) as txn:
        for found in read_contexts(txn.con, IN_CLEAR, "WHERE num = ?", (num,)):
            if found.whole and found.seal.text_key is not None:
                insert_key_copy(txn.con, found.num, found.row.id, found.seal.text_key)
