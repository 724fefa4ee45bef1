"""The beginning of a stored context, as a new one.

Law: nothing is changed here; safe on the store's thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.frozen import frozen
from llmaas.kvchunks.store.store import Span, Store
from llmaas.records import CHUNK_TOKENS, ContextId
from llmaas.service.history_keys import HistoryKey, history_keys, history_root
from llmaas.service.live_context import LiveContext


class HistoryChanged(Exception):
    """A context does not hold what it was found by: it has changed meanwhile."""


@frozen
class Beginning:
    """``spans`` are what the new context holds; ``key`` is that of its messages, None if there is raw text in it."""

    spans: list[Span]
    key: HistoryKey | None


def copy_beginning(store: Store, source: ContextId, live: LiveContext, n_messages: int, n_kv: int) -> Beginning:
    """Let ``live``, which is new and empty, hold the first messages that the store has of ``source``. ``n_kv``: so many
    tokens of that one have KV, of which whole chunks are shared."""
    spans = first_messages(store.spans(source), n_messages)
    live.add_spans(spans)
    live.rekey(min(n_kv, len(live.tokens)) // CHUNK_TOKENS * CHUNK_TOKENS)
    key = None
    if not any(mark.after_raw for mark in live.marks) and len(live.marks) == n_messages:
        root = history_root(live.row.app, live.adapter)
        key = [root, *history_keys(root, live.messages)][-1]
    return Beginning(spans, key)


def first_messages(spans: Sequence[Span], n_messages: int) -> list[Span]:
    """The spans of the first messages, and what stands before and between them.

    >>> glue, answer = Span((1,)), Span((2,), "assistant", "a", True)
    >>> [len(first_messages([Span((3,), "user", "q"), glue, answer, answer, glue], n)) for n in range(3)]
    [0, 1, 4]
    """
    n, goes_on = 0, False
    for i, span in enumerate(spans):
        if n == n_messages and not (goes_on and span.role and span.open):
            return list(spans[:i])
        if span.role is not None and not (goes_on and span.open):
            n += 1
        goes_on = span.open if span.role is not None else goes_on and not span.tokens
    return list(spans)
