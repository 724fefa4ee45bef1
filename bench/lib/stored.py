"""Many contexts in a store, written in seconds: conversations of real text, each another one.

Law: the rows are those that the service writes, with their checksums; only the way there is shorter, one transaction
for all contexts instead of one each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llmaas.kvchunks.store.chain import start
from llmaas.kvchunks.store.context_writes import insert_context, insert_spans, next_number, signed
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.rows import ContextRow, Span
from llmaas.kvchunks.store.schema import INDEX
from llmaas.kvchunks.store.store import MasterKey
from llmaas.kvchunks.store.syscalls import Files
from llmaas.kvchunks.store.text_seal import Sealing
from llmaas.records import ContextId

_CONTEXTS_PER_COMMIT = 500


def fill(
    root: Path, row: ContextRow, pattern: Sequence[Span], n_contexts: int, seed: int, master: MasterKey | None = None
) -> None:
    """Store ``n_contexts`` contexts like the one of ``row`` in the closed store ``root``, encrypted with ``master``.

    Each has the spans of ``pattern``, but that the messages' texts and tokens begin at another place of the whole
    conversation, so that no two contexts begin alike.
    """
    rng, sealing = random.Random(seed), Sealing(master)
    index = Index(root / INDEX, Files(), wal_limit=4 << 20)
    try:
        for first in range(0, n_contexts, _CONTEXTS_PER_COMMIT):
            with index.write(durable=False) as txn:
                number = next_number(txn.con, "contexts", "num")
                for i in range(first, min(first + _CONTEXTS_PER_COMMIT, n_contexts)):
                    named = replace(row, id=ContextId(f"{rng.getrandbits(64):016x}"), name=f"stored {i}")
                    seal, key = sealing.new(named.id, named.app, named.name)
                    spans = signed(start(named.id), list(_turned(pattern, rng)), key)
                    insert_context(txn.con, number, named, spans[-1].chain, seal)
                    insert_spans(txn.con, number, spans)
                    number += 1
    finally:
        index.close()


def _turned(pattern: Sequence[Span], rng: random.Random) -> Iterator[Span]:
    """The spans with the tokens and the text of each turned by a random amount."""
    for span in pattern:
        cut, text = rng.randrange(len(span.tokens) or 1), span.text
        tokens = span.tokens[cut:] + span.tokens[:cut] if span.text else span.tokens
        if text:
            at = rng.randrange(len(text))
            text = text[at:] + text[:at]
        yield replace(span, tokens=tokens, text=text)
