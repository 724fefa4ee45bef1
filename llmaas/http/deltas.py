"""An answer's text as what it is made of: text for people, and calls of tools.

Law: pure. What is fed comes out in order, nothing twice; what may become the beginning of a call is held back until
that is decided.
"""

from __future__ import annotations

from typing import Protocol

from llmaas.frozen import frozen


@frozen
class TextDelta:
    text: str


@frozen
class CallBegin:
    """The model begins to call a tool."""

    index: int
    id: str
    name: str


@frozen
class CallText:
    """More of the arguments of a call, as JSON."""

    index: int
    text: str


Delta = TextDelta | CallBegin | CallText


class Reader(Protocol):
    """Reads one answer."""

    n_calls: int
    """Calls that have begun."""

    def feed(self, text: str) -> list[Delta]:
        """What ``text``, which comes next, adds."""

    def end(self) -> list[Delta]:
        """What was held back. The answer has ended."""


class PlainReader:
    """Text is text."""

    n_calls = 0

    def feed(self, text: str) -> list[Delta]:
        return [TextDelta(text)] if text else []

    def end(self) -> list[Delta]:
        return []
