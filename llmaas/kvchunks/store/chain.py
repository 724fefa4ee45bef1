"""The chain of checksums along the spans of a context: which of them are there, in order, and as they were written.

Law: pure. The checksum of a span covers its values and the checksum of the span before it, that of the first the id of
the context; the last one is also in the context's row. So a span that was altered, lost, put elsewhere or left over
from another context is noticed, and appending costs the same however long the conversation is.

Rejected: a checksum of each span alone. It does not notice a span that is missing.
"""

from __future__ import annotations

from typing import NamedTuple

from llmaas.kvchunks.store.rows import Span
from llmaas.kvchunks.store.sums import Value, row_checksum, without_flip
from llmaas.kvchunks.store.text_seal import TextKey
from llmaas.kvchunks.store.tokens import count, unpack


def start(ctx: Value) -> bytes:
    """What stands for the checksum before the first span of context ``ctx``: the chain of a context without spans.

    Contexts often begin with the same message. Their spans must not be taken for each other's for that.
    """
    return row_checksum((ctx,))


RAW_SPANS = (
    "SELECT id, CAST(tokens AS BLOB), CAST(role AS BLOB), CAST(text AS BLOB), open, CAST(chain AS BLOB) FROM spans"
)
"""Query of the columns of ``RawSpan``. As blobs, since damaged text need not be UTF-8."""


class RawSpan(NamedTuple):
    """A row of ``spans`` as it is on disk: nothing is known to be right. Tokens and text may be encrypted."""

    id: int
    tokens: Value
    role: Value
    text: Value
    open: Value
    chain: Value

    def n_tokens(self, *, sealed: bool) -> int:
        """``sealed``: whether its context is encrypted."""
        return count(self.tokens, sealed=sealed) if isinstance(self.tokens, bytes) else 0

    def link(self, before: bytes) -> bytes:
        """What its checksum must be behind ``before``."""
        return link(before, self.tokens, self.role, self.text, self.open)

    @property
    def possible(self) -> bool:
        """Whether its values can be those of a span in clear."""
        try:
            self.as_span()
        except ValueError:
            return False
        return True

    def as_span(self, key: TextKey | None = None) -> Span:
        """``key``: of its context, if that is encrypted. Raises ValueError if its values cannot be those of a span."""
        text = self.text
        if key is not None and isinstance(text, bytes):
            text = key.open("text", text)
        if self.open not in (0, 1):
            raise ValueError(f"span {self.id} is impossible")
        return Span(tuple(unpack(self.packed_tokens(key))), _text(self.role), _text(text), bool(self.open))

    def packed_tokens(self, key: TextKey | None = None) -> bytes:
        """Its tokens in clear (``tokens.pack``). Raises ValueError if they cannot be those of a span."""
        if not isinstance(self.tokens, bytes) or len(self.tokens) % 4:
            raise ValueError(f"span {self.id} is impossible")
        return self.tokens if key is None else key.open("tokens", self.tokens)


def _text(raw: Value) -> str | None:
    if raw is None or isinstance(raw, bytes):
        return None if raw is None else raw.decode()
    raise ValueError(f"{raw!r} is no text")


def link(before: bytes, tokens: Value, role: Value, text: Value, open_: Value) -> bytes:
    """The checksum of a span that comes behind one whose checksum is ``before``."""
    return row_checksum((before, tokens, role, text, open_))


class Chain:
    """Follows the spans of one context from the first on.

    A span with one flipped bit is put right. A span whose own checksum is damaged counts as right if what comes behind
    it confirms it. Behind a hole nothing follows any more: what was read before it is the beginning of the
    conversation.
    """

    def __init__(self, ctx: Value, *, sealed: bool = False, mend: bool = True) -> None:
        """``sealed``: whether the context is encrypted. ``mend`` False: a flipped bit is not searched for, which takes
        milliseconds."""
        self._sealed, self._mend = sealed, mend
        self.value = start(ctx)
        """The checksum of the last span that is right."""
        self.n_tokens = 0
        self.mended = 0
        """Spans that were put right, or whose checksum was."""
        self.foreign = 0
        """Spans that do not follow: altered, behind a hole, or not of this context."""
        self._doubted: tuple[RawSpan, bytes] | None = None
        """The span that does not follow the last right one, and what its checksum must be if only that is damaged."""

    def add(self, span: RawSpan) -> list[RawSpan]:
        """The next row of the context. Returns the spans that are known to be right now, with the checksums that they
        must have."""
        after = span.link(self.value)
        if after == span.chain:
            self._doubted = None
            return [self._accept(span, after)]
        if self._doubted is None:
            if self._mend and (right := self._without_flip(span)) is not None:
                return [self._accept(right, right.link(self.value), mended=True)]
            self._doubted = span, after
        else:
            doubted, between = self._doubted
            if (after := span.link(between)) == span.chain:
                self._doubted = None
                self.foreign -= 1
                return [self._accept(doubted, between, mended=True), self._accept(span, after)]
        self.foreign += 1
        return []

    def is_followed_by(self, span: RawSpan) -> bool:
        """Whether the span comes directly behind the last right one, as it is."""
        return span.link(self.value) == span.chain

    def end(self, expected: Value) -> list[RawSpan]:
        """There are no more rows; ``expected`` is the last checksum by the context's row. Returns as ``add``."""
        if self._doubted is None or self.value == expected or self._doubted[1] != expected:
            return []
        self.foreign -= 1
        return [self._accept(*self._doubted, mended=True)]

    def _without_flip(self, span: RawSpan) -> RawSpan | None:
        right = without_flip((self.value, span.tokens, span.role, span.text, span.open), span.chain)
        if right is None or right[0] != self.value:
            return None
        _, tokens, role, text, open_ = right
        return RawSpan(span.id, tokens, role, text, open_, span.chain)

    def _accept(self, span: RawSpan, value: bytes, *, mended: bool = False) -> RawSpan:
        self.value = value
        self.n_tokens += span.n_tokens(sealed=self._sealed)
        self.mended += mended
        return span if span.chain == value else span._replace(chain=value)
