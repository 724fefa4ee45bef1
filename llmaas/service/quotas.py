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
from typing import NamedTuple

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
        self._contexts, self._bytes, self._tokens = _Shares(contexts), _Shares(nbytes), _Shares(NO_QUOTA)
        self._counted: dict[ContextId, Size] = {}
        """The size of each context, as it was counted last."""

    def set_own(self, app: AppId, contexts: int | None, tokens: int | None) -> None:
        """How many contexts, and tokens in them, this app may keep; None: as every app."""
        self._contexts.set_own(app, contexts)
        self._tokens.set_own(app, tokens)

    def kept(self, app: AppId) -> tuple[int, int]:
        """How many contexts, and tokens in them, the app keeps."""
        return self._contexts.kept[app], self._tokens.kept[app]

    @property
    def nbytes(self) -> int:
        """Bytes of text and tokens of all apps."""
        return self._bytes.total

    def fits_context(self, app: AppId) -> bool:
        """Whether the app may keep one context more."""
        return self._contexts.kept[app] < self._contexts.allowed(app, 1)

    def fits_text(self, app: AppId, more: Size) -> bool:
        """Whether the app may keep so much more."""
        return self._bytes.fits(app, more.nbytes) and self._tokens.fits(app, more.tokens)

    @contextmanager
    def new_context(self, app: AppId) -> Iterator[None]:
        """Around the making of a context, until ``count`` has counted it. Raises QuotaExceeded."""
        allowed = self._contexts.allowed(app, 1)
        if self._contexts.kept[app] >= allowed:
            raise QuotaExceeded(
                f"the app {app} keeps {self._contexts.kept[app]} contexts; it may keep {allowed}",
                hint="Delete contexts that are not needed ('llmaas ctx rm'), or raise "
                + self._contexts.limit_of(app, "contexts", "the setting app_contexts"),
            )
        self._contexts.add(app, 1)
        try:
            yield
        finally:
            self._contexts.add(app, -1)

    def refuse_text(self, app: AppId, more: Size) -> None:
        """Raises QuotaExceeded if the app may not keep so much more."""
        for shares, n, what, limit in (
            (self._bytes, more.nbytes, "bytes", "the setting app_text_bytes"),
            (self._tokens, more.tokens, "tokens", ""),
        ):
            if not shares.fits(app, n):
                kept, allowed = shares.kept[app] + n, shares.allowed(app, n)
                raise QuotaExceeded(
                    f"text and tokens of the app {app} would take {kept} {what}; they may take {allowed}",
                    hint="Delete or truncate contexts ('llmaas ctx rm', 'llmaas ctx truncate'), or raise "
                    + shares.limit_of(app, what, limit),
                )

    def counted(self, live: LiveContext) -> Size:
        """The size of the context, as it was counted last."""
        return self._counted.get(live.id, NOTHING)

    def count(self, live: LiveContext) -> None:
        """The context is new, or has changed."""
        if live.deleted:
            return
        if live.id not in self._counted:
            self._contexts.add(live.row.app, 1)
        before, now = self.counted(live), text_size(live)
        self._bytes.add(live.row.app, now.nbytes - before.nbytes)
        self._tokens.add(live.row.app, now.tokens - before.tokens)
        self._counted[live.id] = now

    def forget(self, live: LiveContext) -> None:
        """The context was deleted."""
        self._contexts.add(live.row.app, -1)
        before = self._counted.pop(live.id)
        self._bytes.add(live.row.app, -before.nbytes)
        self._tokens.add(live.row.app, -before.tokens)


class _Shares:
    """What each app keeps of something of which one app may keep ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._own: dict[AppId, int] = {}
        """What single apps may keep."""
        self.kept = Counter[AppId]()
        self.total = 0

    def add(self, app: AppId, n: int) -> None:
        self.total += n
        self.kept[app] += n
        if not self.kept[app]:
            del self.kept[app]

    def set_own(self, app: AppId, most: int | None) -> None:
        self._own.pop(app, None)
        if most is not None:
            self._own[app] = most

    def fits(self, app: AppId, more: int) -> bool:
        return self.kept[app] + more <= self.allowed(app, more)

    def allowed(self, app: AppId, more: int) -> int:
        """What the app may keep, if it is to be given ``more``."""
        together, own = APPS_AT_ONCE * self._most, self._own.get(app, self._most)
        if self.total + more <= together or self._most >= NO_QUOTA:
            return own
        return min(own, together // len(self.kept.keys() | {app}))

    def limit_of(self, app: AppId, name: str, setting: str) -> str:
        """What must be raised so that the app may keep more."""
        return f"the app's quota ('llmaas app quota {app} {name}=N')." if app in self._own else f"{setting}."


class Size(NamedTuple):
    """What of a context, or of what is to be added to one, counts."""

    nbytes: int
    """Of text and tokens in memory."""
    tokens: int

    def less(self, other: Size) -> Size:
        return Size(self.nbytes - other.nbytes, self.tokens - other.tokens)


NOTHING = Size(0, 0)


def text_size(live: LiveContext) -> Size:
    """What a context's text and tokens take in memory, or will take once they are read."""
    if live.unread is not None:
        return Size(live.unread.nbytes, live.n_tokens)
    texts = sum(MESSAGE + sys.getsizeof(mark.message.content) for mark in live.marks)
    return Size(TOKEN * len(live.tokens) + texts, len(live.tokens))


def listed_bytes(summary: ContextSummary) -> int:
    """About what a stored context's text and tokens will take in memory once they are read."""
    return TOKEN * summary.row.n_tokens + (MESSAGE + _TEXT) * summary.n_messages + summary.text_bytes


def span_size(spans: Sequence[Span]) -> Size:
    """What these spans will take of a context's text and tokens."""
    texts = sum(MESSAGE + sys.getsizeof(span.text or "") for span in spans if span.role is not None)
    tokens = sum(len(span.tokens) for span in spans)
    return Size(TOKEN * tokens + texts, tokens)
