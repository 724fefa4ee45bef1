"""Counts the messages of all contexts in SQL, so that a start need not read what is in them.

Law: reads only, and takes rows as they are: whether they are right is found out when a context is read.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from llmaas.kvchunks.store.cipher import OVERHEAD

_CONTINUES = (
    "SELECT before.open = 1 AND before.role IS NOT NULL FROM spans AS before"
    " WHERE before.context = spans.context AND before.id < spans.id"
    " AND (before.role IS NOT NULL OR length(before.tokens) > 0) ORDER BY before.id DESC LIMIT 1"
)
"""An answer that was continued is one message: an open span directly behind an open one, with no tokens between.
Rejected: a window function over all spans, which takes twice as long as all the rest of the counting."""
_COUNTS = (
    f"SELECT context, count(*) - sum(CASE WHEN open = 1 THEN coalesce(({_CONTINUES}), 0) ELSE 0 END),"
    " sum(coalesce(length(CAST(text AS BLOB)), 0)), sum(coalesce(length(text) > 0, 0))"
    " FROM spans WHERE role IS NOT NULL GROUP BY context"
)


class MessageCount(NamedTuple):
    """Of one context."""

    messages: int = 0
    nbytes: int = 0
    """Of the messages' contents, as they are stored."""
    n_texts: int = 0
    """Contents that are not empty."""

    def text_bytes(self, *, sealed: bool) -> int:
        """Of the messages' contents in UTF-8. ``sealed``: whether the context is encrypted."""
        return max(self.nbytes - self.n_texts * OVERHEAD, 0) if sealed else self.nbytes


def count_messages(con: sqlite3.Connection) -> dict[int, MessageCount]:
    """By the number of the context; those without messages are missing."""
    return {num: MessageCount(*counts) for num, *counts in con.execute(_COUNTS)}
