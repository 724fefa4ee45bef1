"""Writes rows of contexts and spans, with their checksums.

Law: in the transaction of the caller, who has verified what was there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from llmaas.kvchunks.store.chain import RawSpan, link, start
from llmaas.kvchunks.store.context_rows import COLUMNS, LARGEST_NUMBER, StoredContext, checksum_of
from llmaas.kvchunks.store.rows import ContextRow, ModelName, Span
from llmaas.kvchunks.store.tokens import pack
from llmaas.records import ContextId


class SignedSpan(NamedTuple):
    """A row of ``spans``, but for its place."""

    tokens: bytes
    role: str | None
    text: str | None
    open: bool
    chain: bytes


def signed(last: bytes, spans: Sequence[Span]) -> list[SignedSpan]:
    """The rows of spans that come behind one whose checksum is ``last``."""
    rows = list[SignedSpan]()
    for span in spans:
        tokens = pack(span.tokens)
        last = link(last, tokens, span.role, span.text, span.open)
        rows.append(SignedSpan(tokens, span.role, span.text, span.open, last))
    return rows


def insert_spans(con: sqlite3.Connection, num: int, rows: Sequence[SignedSpan]) -> None:
    """Insert spans behind all others of context ``num``."""
    if rows:
        first = next_number(con, "spans", "id")
        con.executemany(
            "INSERT INTO spans (id, context, tokens, role, text, open, chain) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(id_, num, *row) for id_, row in enumerate(rows, first)],
        )


def next_number(con: sqlite3.Connection, table: str, column: str) -> int:
    """SQLite's own choice is drawn at random once the largest number is in use, which a damaged row may have."""
    highest = con.execute(f"SELECT max({column}) FROM {table} WHERE {column} < {LARGEST_NUMBER}").fetchone()[0]
    return max(highest or 0, 0) + 1


def insert_context(con: sqlite3.Connection, num: int, row: ContextRow, chain: bytes) -> None:
    """``chain`` is the checksum of its last span. Raises sqlite3.IntegrityError if number, id or name is taken."""
    values = (row.id, row.app, row.name, row.model, row.vocab, row.created, row.last_used, row.n_tokens, row.adapter)
    con.execute(
        f"INSERT INTO contexts ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})",
        (num, *values, chain, checksum_of(num, row, chain)),
    )


def update_context(
    con: sqlite3.Connection,
    old: StoredContext,
    n_tokens: int,
    chain: bytes,
    now: float,
    adapter: str | None = None,
    model: ModelName | None = None,
) -> None:
    """The context's spans, or what they belong to, have changed. None keeps the adapter, and the model."""
    row = replace(old.row, n_tokens=n_tokens, last_used=now, adapter=old.row.adapter if adapter is None else adapter)
    if model is not None:
        row = replace(row, model=model.model, vocab=model.vocab)
    con.execute(
        "UPDATE contexts SET n_tokens = ?, last_used = ?, adapter = ?, chain = ?, checksum = ?,"
        " model = coalesce(?, model), vocab = coalesce(?, vocab) WHERE num = ?",
        (n_tokens, now, row.adapter, chain, checksum_of(old.num, row, chain), *(model or (None, None)), old.num),
    )


def last_chain(ctx: ContextId, spans: Sequence[RawSpan]) -> bytes:
    """The checksum of the last span of a context."""
    chain = spans[-1].chain if spans else start(ctx)
    assert isinstance(chain, bytes)
    return chain


def cut_spans(
    con: sqlite3.Connection, context: StoredContext, spans: Sequence[RawSpan], n_tokens: int
) -> list[RawSpan]:
    """Drop the spans that begin at ``n_tokens`` or later. A span that is cut in two keeps its tokens before the cut, as
    glue: its text would no longer say what its tokens say. Returns the spans that are left.
    """
    kept, left = list[RawSpan](), n_tokens
    for span in spans:
        if not left and span.n_tokens:
            break
        if left < span.n_tokens:
            assert isinstance(span.tokens, bytes)
            cut = RawSpan(span.id, span.tokens[: 4 * left], None, None, 0, None)
            cut = cut._replace(chain=cut.link(last_chain(context.row.id, kept)))
            con.execute(
                "UPDATE spans SET tokens = ?, role = NULL, text = NULL, open = 0, chain = ? WHERE id = ?",
                (cut.tokens, cut.chain, cut.id),
            )
            kept.append(cut)
            break
        kept.append(span)
        left -= span.n_tokens
    last = kept[-1].id if kept else -LARGEST_NUMBER
    con.execute("DELETE FROM spans WHERE context = ? AND id > ?", (context.num, last))
    return kept
