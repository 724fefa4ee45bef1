"""How much of contexts, their text and their tokens apps may keep.

Law: values only. What one app keeps is bounded, and what all keep together is too: beyond four times that of one app,
an app may keep an equal share of it, so that no app is kept from its share by others.

All that is used is in memory while the daemon runs; what has not been used since the start counts as if it were.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llmaas.errors import QuotaExceeded
from llmaas.kvchunks.store.store import ContextSummary, Span
from llmaas.records import NO_QUOTA, AppId, ContextId
from llmaas.service.live_context import LiveContext

APPS_AT_ONCE = 4
"""How many apps can keep all that one app may before the apps' shares become smaller."""
TOKEN, MESSAGE = 10, 320
"""Bytes of a token with the books about its chunk, and of a message beside its content: about 200 of the message, and
100 of its place in the table of conversations."""
_TEXT = sys.getsizeof("")


class Quotas:
    """``contexts`` and ``nbytes``: how many contexts one app may keep, and how many bytes of text and tokens."""

    def __init__(self, contexts: int, nbytes: int) -> None:
        self._contexts, self._bytes = _Shares(contexts), _Shares(nbytes)
        self._counted: dict[ContextId, int] = {}
        """The bytes of each context, as they were counted last."""

    @property
    def nbytes(self) -> int:
        """Bytes of text and tokens of all apps."""
        return self._bytes.total

    def fits_context(self, app: AppId) -> bool:
        """Whether the app may keep one context more."""
        return self._contexts.kept[app] < self._contexts.allowed(app, 1)

    def fits_text(self, app: AppId, nbytes: int) -> bool:
        """Whether the app may keep ``nbytes`` bytes more."""
        return self._bytes.kept[app] + nbytes <= self._bytes.allowed(app, nbytes)

    @contextmanager
    def new_context(self, app: AppId) -> Iterator[None]:
        """Around the making of a context, until ``count`` has counted it. Raises QuotaExceeded."""
        allowed = self._contexts.allowed(app, 1)
        if self._contexts.kept[app] >= allowed:
            raise QuotaExceeded(
                f"the app {app} keeps {self._contexts.kept[app]} contexts; it may keep {allowed}",
                hint="Delete contexts that are not needed ('llmaas ctx rm'), or raise the setting app_contexts.",
            )
        self._contexts.add(app, 1)
        try:
            yield
        finally:
            self._contexts.add(app, -1)

    def refuse_text(self, app: AppId, nbytes: int) -> None:
        """Raises QuotaExceeded if the app may not keep ``nbytes`` bytes more."""
        kept, allowed = self._bytes.kept[app], self._bytes.allowed(app, nbytes)
        if kept + nbytes > allowed:
            raise QuotaExceeded(
                f"text and tokens of the app {app} would take {kept + nbytes} bytes; they may take {allowed}",
                hint="Delete or truncate contexts ('llmaas ctx rm', 'llmaas ctx truncate'), or raise the setting "
                "app_text_bytes.",
            )

    def counted(self, live: LiveContext) -> int:
        """The bytes of text of the context, as they were counted last."""
        return self._counted.get(live.id, 0)

    def count(self, live: LiveContext) -> None:
        """The context is new, or has changed."""
        if live.deleted:
            return
        if live.id not in self._counted:
            self._contexts.add(live.row.app, 1)
        nbytes = text_bytes(live)
        self._bytes.add(live.row.app, nbytes - self._counted.get(live.id, 0))
        self._counted[live.id] = nbytes

    def forget(self, live: LiveContext) -> None:
        """The context was deleted."""
        self._contexts.add(live.row.app, -1)
        self._bytes.add(live.row.app, -self._counted.pop(live.id))


class _Shares:
    """What each app keeps of something of which one app may keep ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.kept = Counter[AppId]()
        self.total = 0

    def add(self, app: AppId, n: int) -> None:
        self.total += n
        self.kept[app] += n
        if not self.kept[app]:
            del self.kept[app]

    def allowed(self, app: AppId, more: int) -> int:
        """What the app may keep, if it is to be given ``more``."""
        together = APPS_AT_ONCE * self._most
        if self.total + more <= together or self._most >= NO_QUOTA:
            return self._most
        return min(self._most, together // len(self.kept.keys() | {app}))


def text_bytes(live: LiveContext) -> int:
    """What a context's text and tokens take in memory, or will take once they are read."""
    if live.unread is not None:
        return live.unread.nbytes
    texts = sum(MESSAGE + sys.getsizeof(mark.message.content) for mark in live.marks)
    return TOKEN * len(live.tokens) + texts


def listed_bytes(summary: ContextSummary) -> int:
    """About what a stored context's text and tokens will take in memory once they are read."""
    return TOKEN * summary.row.n_tokens + (MESSAGE + _TEXT) * summary.n_messages + summary.text_bytes


def span_bytes(spans: Sequence[Span]) -> int:
    """What these spans will take of a context's text and tokens."""
    texts = sum(MESSAGE + sys.getsizeof(span.text or "") for span in spans if span.role is not None)
    return TOKEN * sum(len(span.tokens) for span in spans) + texts
