"""Gives checksums to rows that were written before there were any.

Law: what is there is taken as it is, since nothing says otherwise. A context with values that no version wrote gets no
checksum, and so counts as damaged: a wrong value never stops a migration. Memory does not grow with the store.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from llmaas.kvchunks.store.chain import RAW_SPANS, RawSpan, start
from llmaas.kvchunks.store.context_rows import SIGNED, impossible, raw_contexts
from llmaas.kvchunks.store.sums import Value, row_checksum

_AT_ONCE = 16
"""Spans that are in memory at one time."""
_SIGNED = SIGNED[: SIGNED.index("text_key")]
"""What a checksum covered when the first were written; a context in clear has the same today."""
_N_TOKENS = _SIGNED.index("n_tokens")


def sign_all(con: sqlite3.Connection) -> None:
    """Write the checksums of all contexts, spans and adapters, in the transaction that is open."""
    for values in con.execute(raw_contexts(_SIGNED)).fetchall():
        chain, n_tokens = _sign_spans(con, *values[:2])
        if n_tokens == values[_N_TOKENS] and not impossible(values):
            con.execute(
                "UPDATE contexts SET chain = ?, checksum = ? WHERE num = ?",
                (chain, row_checksum((*values[:-1], chain)), values[0]),
            )
    for rowid, *texts in con.execute("SELECT rowid, name, path, fingerprint FROM adapters").fetchall():
        con.execute("UPDATE adapters SET checksum = ? WHERE rowid = ?", (row_checksum(texts), rowid))


def _sign_spans(con: sqlite3.Connection, num: Value, ctx: Value) -> tuple[bytes, int]:
    """The last checksum, and the number of tokens, of a context's spans up to the first that is impossible."""
    chain, n_tokens = start(ctx), 0
    for batch in _batches(con, num):
        signed = list[tuple[bytes, int]]()
        for span in batch:
            if not span.possible:
                break
            chain, n_tokens = span.link(chain), n_tokens + span.n_tokens(sealed=False)
            signed.append((chain, span.id))
        con.executemany("UPDATE spans SET chain = ? WHERE id = ?", signed)
        if len(signed) < len(batch):
            break
    return chain, n_tokens


def _batches(con: sqlite3.Connection, num: Value) -> Iterator[list[RawSpan]]:
    last = -(1 << 63)
    query = f"{RAW_SPANS} WHERE context = ? AND id > ? ORDER BY id LIMIT {_AT_ONCE}"
    while batch := [RawSpan(*row) for row in con.execute(query, (num, last))]:
        yield batch
        last = batch[-1].id
