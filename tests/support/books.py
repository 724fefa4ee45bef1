"""What one context must hold after every reply, and what a call must bring: values that tests compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmaas.calls import FinishReason
from llmaas.kvchunks.store.store import Span


@dataclass(frozen=True)
class Mark:
    """A message, and where its tokens end."""

    role: str
    text: str
    end: int
    open: bool = False


@dataclass(frozen=True)
class Book:
    """What one context must hold, as its app knows it. ``spans`` are those that the store must have."""

    name: str
    tokens: tuple[int, ...] = ()
    marks: tuple[Mark, ...] = ()
    spans: tuple[Span, ...] = field(default=(), compare=False)
    adapter: str = ""
    """The LoRA adapter that all of it is computed with; empty: none."""

    @property
    def messages(self) -> list[tuple[str, str]]:
        return [(mark.role, mark.text) for mark in self.marks]

    @property
    def open(self) -> bool:
        return bool(self.marks) and self.marks[-1].open

    def add(self, span: Span) -> Book:
        """The context with ``span`` appended."""
        start, tokens, marks, text = len(self.tokens), (*self.tokens, *span.tokens), self.marks, span.text or ""
        if span.role is not None:
            if span.open and self.open and marks[-1].end == start:  # a continued answer is one message
                text, marks = marks[-1].text + text, marks[:-1]
            marks = (*marks, Mark(span.role, text, len(tokens), span.open))
        return Book(self.name, tokens, marks, (*self.spans, span), self.adapter)

    def cut(self, n: int) -> Book:
        """The first ``n`` tokens. A span that is cut in two is no message any more."""
        book = Book(self.name, adapter=self.adapter)
        for span in self.spans:
            room = n - len(book.tokens)
            if len(span.tokens) <= room:
                book = book.add(span)
            elif room:
                book = book.add(Span(span.tokens[:room]))
        return book

    def cuts_clean(self, n: int) -> bool:
        """Whether messages before ``n`` tokens stay as they are when the context is cut there.

        They do not in the middle of an answer that was continued, nor at an empty answer; other tests are about these.
        """
        start = 0
        for span in self.spans:
            if start == n and not span.tokens:
                return False
            start += len(span.tokens)
        return self.cut(n).marks == tuple(mark for mark in self.marks if mark.end <= n)


def book_of(name: str, spans: Sequence[Span], adapter: str = "") -> Book:
    """The book of a context whose spans are those of the store."""
    book = Book(name, adapter=adapter)
    for span in spans:
        book = book.add(span)
    return book


@dataclass(frozen=True)
class Expected:
    """What a call that generates must bring: the tokens it draws, the text it streams, and why it ends.

    ``text`` ends before a stop string, and so does the context.
    """

    prompted: Book
    """The context with the call's prompt, without the answer."""
    drawn: tuple[int, ...]
    text: str
    reason: FinishReason
    is_message: bool
    """The answer is an assistant's message, not raw text."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The tokens that the context keeps: of the fake engine each is a byte of the text."""
        return self.drawn[: len(self.text.encode())]

    def after(self, n: int | None = None) -> Book:
        """The context with the answer, of which ``kept`` or, if given, the first ``n`` tokens were kept."""
        drawn = self.kept if n is None else self.drawn[:n]
        text = self.text if n is None else bytes(drawn).decode()
        if self.is_message:
            return self.prompted.add(Span(drawn, "assistant", text, True))
        return self.prompted.add(Span(drawn))
