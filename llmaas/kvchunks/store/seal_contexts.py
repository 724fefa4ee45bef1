"""Encrypts the contexts that a store has in clear: those of older versions, or of a store without encryption.

Law: one transaction turns a context in clear into an encrypted one, and leaves it whole or as it was. A kill loses
nothing, and the next opening goes on. A context that is damaged stays as it is, and is said.

Afterwards the database is written anew. SQLite overwrites what is deleted (``secure_delete``), but when it moves rows
between pages, copies of them may stay in the free parts of pages. The database's application id says that this is due:
it is set in the transactions that encrypt, and cleared when the new pages are safely in the log.
"""

from __future__ import annotations

import logging
import sqlite3

from llmaas.errors import ContextDamaged, MachineError
from llmaas.kvchunks.store.chain import link, start
from llmaas.kvchunks.store.context_rows import StoredContext, follow, read_contexts
from llmaas.kvchunks.store.context_writes import rewrite_context, seal_span
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.text_seal import Sealing
from llmaas.kvchunks.store.turn_rows import seal_turns

log = logging.getLogger(__name__)

BYTES_AT_ONCE, CONTEXTS_AT_ONCE = 4 << 20, 500
"""Of one transaction, which ends with the context that reaches one of them."""
_REWRITE_DUE = 1
"""The application id of a database that may have text in clear in the free parts of its pages."""


def seal_contexts(index: Index, sealing: Sealing) -> None:
    """Encrypt what is in clear, if ``sealing`` is on. What fails is logged, and tried again at the next opening."""
    if not sealing.on:
        return
    try:
        _seal_all(index, sealing)
        if _application_id(index) == _REWRITE_DUE:
            _rewrite(index)
    except MachineError as error:
        log.warning("text on disk is not all encrypted yet, the next start goes on: %s", error)


def _seal_all(index: Index, sealing: Sealing) -> None:
    with index.read() as con:
        todo = [num for (num,) in con.execute("SELECT num FROM contexts WHERE text_key IS NULL ORDER BY num")]
    if not todo:
        return
    log.info("%d conversations are in clear on disk; they are being encrypted", len(todo))
    at = failed = 0
    while at < len(todo):
        at, failures = _seal_some(index, sealing, todo, at)
        failed += failures
        log.info("%d of %d conversations are encrypted", at - failed, len(todo))
    if failed:
        log.warning("%d conversations are damaged and stay in clear: run 'llmaas doctor --repair'", failed)


def _seal_some(index: Index, sealing: Sealing, todo: list[int], at: int) -> tuple[int, int]:
    """Encrypt some contexts from ``todo[at]`` on in one transaction. Returns where to go on, and how many failed."""
    nbytes, failed, end = 0, 0, min(len(todo), at + CONTEXTS_AT_ONCE)
    # Not synced: what a power cut undoes is done again, and commits are never lost out of order.
    with index.write(durable=False) as txn, index.read() as con:
        con.execute("BEGIN")  # the rows as they are before this transaction
        txn.con.execute(f"PRAGMA application_id = {_REWRITE_DUE}")
        while at < end and nbytes < BYTES_AT_ONCE:
            for context in read_contexts(con, sealing, "WHERE num = ?", (todo[at],)):
                try:
                    nbytes += _seal(con, txn.con, context, sealing)
                except ContextDamaged:
                    failed += 1
            at += 1
    return at, failed


def _seal(old: sqlite3.Connection, new: sqlite3.Connection, context: StoredContext, sealing: Sealing) -> int:
    """Encrypt one context: read by ``old``, written by ``new``. Returns its bytes. Raises ContextDamaged before
    anything is written."""
    if context.sealed:
        return 0
    _check(old, context)
    row = context.row
    seal, key = sealing.new(row.id, row.app, row.name)
    assert key is not None
    last, nbytes = start(row.id), 0
    for span in follow(old, context.num, context.chain_start(), context.chain):
        found = span.as_span()
        tokens, text = seal_span(key, span.packed_tokens(), found.text)
        last = link(last, tokens, found.role, text, found.open)
        new.execute(
            "UPDATE spans SET tokens = ?, role = ?, text = ?, open = ?, chain = ? WHERE id = ?",
            (tokens, found.role, text, found.open, last, span.id),
        )
        nbytes += len(tokens) + len(text or b"")
    seal_turns(new, context, key)
    rewrite_context(new, context.num, row, last, seal)
    return nbytes


def _check(con: sqlite3.Connection, context: StoredContext) -> None:
    """Raises ContextDamaged if not all of the context is right, or could be put right."""
    chain, possible = context.chain_start(), True
    for span in follow(con, context.num, chain, context.chain):
        possible = possible and span.possible
    right = chain.value == context.chain and chain.n_tokens == context.row.n_tokens and not chain.foreign
    if not (context.whole and right and possible):
        raise ContextDamaged(f"{context} is damaged on disk")


def _rewrite(index: Index) -> None:
    index.rewrite()
    with index.write(durable=True) as txn:
        txn.con.execute("PRAGMA application_id = 0")
    index.scrub()


def _application_id(index: Index) -> int:
    with index.read() as con:
        return int(con.execute("PRAGMA application_id").fetchone()[0])
