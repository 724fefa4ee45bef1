"""Compares all rows that hold conversations with their checksums.

Law: reads only, and says of every row that is not what was written whose it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from llmaas.kvchunks.store.adapters import read_adapters
from llmaas.kvchunks.store.context_rows import RowState, StoredContext, follow, read_contexts
from llmaas.kvchunks.store.key_copies import has_key_copy
from llmaas.kvchunks.store.reports import Damage
from llmaas.kvchunks.store.text_seal import Sealing
from llmaas.kvchunks.store.ttl_rows import has_damaged_ttl
from llmaas.kvchunks.store.turn_rows import damaged_turns


class RowProblem(NamedTuple):
    """``kind`` is COUNT if nothing but a context's count is wrong, TURN for idempotency keys, TTL, KEY for the copy of
    a text key, otherwise ROW."""

    kind: Damage
    text: str
    num: int = 0
    """Of the context whose count, keys, TTL or copy of a text key is wrong."""
    turns: tuple[int, ...] = ()
    """Numbers of the turns whose keys are damaged."""


def row_problems(con: sqlite3.Connection, sealing: Sealing) -> Iterator[RowProblem]:
    """What is wrong with the rows of contexts, spans, text keys, turns, TTLs and adapters."""
    for context in read_contexts(con, sealing):
        if context.state is RowState.RECOUNTED:
            said = con.execute("SELECT n_tokens FROM contexts WHERE num = ?", (context.rowid,)).fetchone()[0]
            text = f"context {context.row.id}: {context.row.n_tokens} tokens, but counted as {said}"
            yield RowProblem(Damage.COUNT, text, context.num)
        elif context.state is not RowState.SOUND or context.rowid != context.num:
            yield RowProblem(Damage.ROW, f"{context}: its row is {context.state.value}")
        if (problem := _spans_problem(con, context)) is not None:
            yield RowProblem(Damage.ROW, f"{context}: {problem}")
        key = context.seal.text_key
        if context.whole and key is not None and not has_key_copy(con, context.num, context.row.id, key):
            yield RowProblem(Damage.KEY, f"{context}: the copy of its key", context.num)
        if turns := tuple(damaged_turns(con, context)):
            yield RowProblem(Damage.TURN, f"{context}: the keys of {len(turns)} turns", context.num, turns)
        if has_damaged_ttl(con, context):
            yield RowProblem(Damage.TTL, f"{context}: how long it stays unused", context.num)
    for rowid, row in read_adapters(con):
        if row is None:
            yield RowProblem(Damage.ROW, f"adapter {rowid}: its row is damaged")


def _spans_problem(con: sqlite3.Connection, context: StoredContext) -> str | None:
    chain = context.chain_start()
    for _ in follow(con, context.num, chain, context.chain):
        pass
    if context.whole and (chain.value != context.chain or chain.n_tokens != context.row.n_tokens):
        return f"{chain.n_tokens} of {context.row.n_tokens} tokens can be read"
    if chain.mended or chain.foreign:
        return f"{chain.mended} spans have flipped bits, {chain.foreign} are not its own"
    return None
