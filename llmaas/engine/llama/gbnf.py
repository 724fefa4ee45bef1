"""GBNF, llama.cpp's language of grammars: a text is read over here before llama.cpp parses it.

Law: text only, no llama_cpp. A text that would end the process is refused, and so is one that llama.cpp would refuse
without saying why to anybody but stderr.

llama.cpp's parser calls itself for each parenthesis without bound, and takes an empty text as no grammar at all. Tokens
named by number (``<[7]>``, ``!<[7]>``) it allows and then aborts on, so they are refused.
"""

from __future__ import annotations

import re

from llmaas.calls import MAX_GRAMMAR
from llmaas.errors import BadRequest

HINT = "docs/protocol.md tells what grammars and schemas may hold."
_MAX_DEPTH = 2000
"""Of parentheses: llama.cpp's parser calls itself for each, and at some ten thousand the process ends."""
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|\#[^\n]*|\n)
    |(?P<define>(?P<rule>[A-Za-z0-9-]+)[ \t\r\n]*::=)|(?P<name>[A-Za-z0-9-]+)
    |(?P<item>"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\.)
    |(?P<repeat>[*+?]|\{[ ]*[0-9]{1,9}[ ]*(?:,[ ]*(?:[0-9]{1,9}[ ]*)?)?\})|(?P<open>\()|(?P<close>\))|(?P<bar>\|)""",
    re.VERBOSE,
)
"""One token of GBNF, by kind. An item is a string, a set of characters, or "." for any character."""
_REPEATABLE = ("item", "name", "close", "repeat")
_ESCAPE = re.compile(r"""\\(?:[nrt\\"\[\]]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|[^\\]""")


def check_gbnf(text: str) -> None:
    """Raise BadRequest, with the line, for a text that is not GBNF.

    Refused as well: a text without a rule ``root`` or a rule that it names, and parentheses nested deeper than 2000.
    """
    if len(text) > MAX_GRAMMAR:
        raise BadRequest(f"the grammar has {len(text)} characters, more than {MAX_GRAMMAR}", hint=HINT)
    reader, at = _Reader(), 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or (found.lastgroup == "item" and _ESCAPE.sub("", found.group())):
            raise _bad(reader.line, f"cannot read {text[at : at + 30]!r}")
        reader.take(found)
        at = found.end()
    reader.finish()


class _Reader:
    """How far a grammar has been read: its line, the parentheses open there, and the rules seen until now."""

    def __init__(self) -> None:
        self.line = 1
        self._depth = 0
        self._defined: set[str] = set()
        self._named = {"root": 1}
        """Rules that must be defined somewhere, and the line that names them first."""
        self._last: str | None = None
        """Kind of the last token but spaces."""

    def take(self, found: re.Match[str]) -> None:
        kind, token = found.lastgroup, found.group()
        if kind != "space":
            if kind == "repeat" and self._last not in _REPEATABLE:
                raise _bad(self.line, f"{token!r} has nothing to repeat")
            self._nest(kind)
            self._record_rule(kind, found)
            self._last = kind
        self.line += token.count("\n")

    def _nest(self, kind: str | None) -> None:
        self._depth += (kind == "open") - (kind == "close")
        if not 0 <= self._depth <= _MAX_DEPTH or (kind == "define" and self._depth):
            raise _bad(self.line, f"parentheses do not match, or are nested deeper than {_MAX_DEPTH}")

    def _record_rule(self, kind: str | None, found: re.Match[str]) -> None:
        if kind == "define":
            self._defined.add(found.group("rule"))
        elif not self._defined:
            raise _bad(self.line, f"a rule begins with its name and '::=', not with {found.group()!r}")
        if kind == "name":
            self._named.setdefault(found.group(), self.line)

    def finish(self) -> None:
        """The text ends here."""
        if self._depth:
            raise _bad(self.line, "a parenthesis is not closed")
        for name, line in self._named.items():
            if name not in self._defined:
                raise _bad(line, f"there is no rule {name!r}")


def _bad(line: int, what: str) -> BadRequest:
    return BadRequest(f"the grammar's line {line}: {what}", hint=HINT)
