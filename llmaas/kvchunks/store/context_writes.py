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
from llmaas.kvchunks.store.key_copies import insert_key_copy
from llmaas.kvchunks.store.rows import ContextRow, ModelName, Span
from llmaas.kvchunks.store.text_seal import RowSeal, TextKey
from llmaas.kvchunks.store.tokens import pack
from llmaas.records import ContextId


class SignedSpan(NamedTuple):
    """A row of ``spans``, but for its place."""

    tokens: bytes
    role: str | None
    text: str | bytes | None
    """Bytes if it is encrypted."""
    open: bool
    chain: bytes


def signed(last: bytes, spans: Sequence[Span], key: TextKey | None) -> list[SignedSpan]:
    """The rows of spans that come behind one whose checksum is ``last``. ``key``: of their context; None: in clear."""
    rows = list[SignedSpan]()
    for span in spans:
        tokens, text = seal_span(key, pack(span.tokens), span.text)
        last = link(last, tokens, span.role, text, span.open)
        rows.append(SignedSpan(tokens, span.role, text, span.open, last))
    return rows


def seal_span(key: TextKey | None, tokens: bytes, text: str | None) -> tuple[bytes, str | bytes | None]:
    """Packed tokens and text as they are stored."""
    if key is None:
        return tokens, text
    return key.seal("tokens", tokens), None if text is None else key.seal("text", text.encode())


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


def insert_context(con: sqlite3.Connection, num: int, row: ContextRow, chain: bytes, seal: RowSeal) -> None:
    """``chain`` is the checksum of its last span. Raises sqlite3.IntegrityError if number, id or name is taken."""
    con.execute(
        f"INSERT INTO contexts ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})",
        _values(num, row, chain, seal),
    )
    if seal.text_key is not None:
        insert_key_copy(con, num, row.id, seal.text_key)


def rewrite_context(con: sqlite3.Connection, num: int, row: ContextRow, chain: bytes, seal: RowSeal) -> None:
    """Write every column of a context's row anew, and the copy of its key."""
    columns = ", ".join(f"{name} = ?" for name in COLUMNS[1:])
    con.execute(f"UPDATE contexts SET {columns} WHERE num = ?", (*_values(num, row, chain, seal)[1:], num))
    if seal.text_key is not None:
        insert_key_copy(con, num, row.id, seal.text_key)


def _values(num: int, row: ContextRow, chain: bytes, seal: RowSeal) -> tuple[object, ...]:
    """Of ``COLUMNS``."""
    texts = row.id, row.app, seal.name, row.model, row.vocab
    numbers = row.created, row.last_used, row.n_tokens
    return (num, *texts, *numbers, row.adapter, chain, seal.text_key, checksum_of(num, row, chain, seal))


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
    checksum = checksum_of(old.num, row, chain, old.seal)
    con.execute(
        "UPDATE contexts SET n_tokens = ?, last_used = ?, adapter = ?, chain = ?, checksum = ?,"
        " model = coalesce(?, model), vocab = coalesce(?, vocab) WHERE num = ?",
        (n_tokens, now, row.adapter, chain, checksum, *(model or (None, None)), old.num),
    )


def last_chain(ctx: ContextId, spans: Sequence[RawSpan]) -> bytes:
    """The checksum of the last span of a context."""
    chain = spans[-1].chain if spans else start(ctx)
    assert isinstance(chain, bytes)
    return chain


def cut_spans(
    con: sqlite3.Connection, context: StoredContext, spans: Sequence[RawSpan], n_tokens: int, key: TextKey | None
) -> list[RawSpan]:
    """Drop the spans that begin at ``n_tokens`` or later. A span that is cut in two keeps its tokens before the cut, as
    glue: its text would no longer say what its tokens say. Returns the spans that are left. ``key``: of the context.
    """
    kept, left = list[RawSpan](), n_tokens
    for span in spans:
        length = span.n_tokens(sealed=context.sealed)
        if not left and length:
            break
        if left < length:
            tokens, _ = seal_span(key, span.packed_tokens(key)[: 4 * left], None)
            cut = RawSpan(span.id, tokens, None, None, 0, None)
            cut = cut._replace(chain=cut.link(last_chain(context.row.id, kept)))
            con.execute(
                "UPDATE spans SET tokens = ?, role = NULL, text = NULL, open = 0, chain = ? WHERE id = ?",
                (cut.tokens, cut.chain, cut.id),
            )
            kept.append(cut)
            break
        kept.append(span)
        left -= length
    last = kept[-1].id if kept else -LARGEST_NUMBER
    con.execute("DELETE FROM spans WHERE context = ? AND id > ?", (context.num, last))
    return kept
