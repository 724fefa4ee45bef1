"""GBNF, llama.cpp's language of grammars, read into rules.

Law: the time is linear in the text and in the rules that are made of it, and nothing calls itself. A text that cannot
be used is refused with its line.

Tokens named by number (``<[7]>``) are refused: a grammar is about text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from llmaas.calls import MAX_GRAMMAR
from llmaas.engine.constraint.character_sets import complement, ranges_of
from llmaas.engine.constraint.limits import MAX_DEPTH, refuse
from llmaas.engine.constraint.rules import ANY, Ranges, Rules, Symbols
from llmaas.errors import BadRequest

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|\#[^\n]*|\n)
    |(?P<define>(?P<rule>[A-Za-z0-9_-]+)[ \t\r\n]*::=)|(?P<name>[A-Za-z0-9_-]+)
    |(?P<text>"[^"\\]*(?:\\.[^"\\]*)*")|(?P<set>\[[^\]\\]*(?:\\.[^\]\\]*)*\]|\.)
    |(?P<repeat>[*+?]|\{[ ]*(?P<least>[0-9]{1,9})[ ]*(?P<comma>,[ ]*(?P<most>[0-9]{1,9})?[ ]*)?\})
    |(?P<open>\()|(?P<close>\))|(?P<bar>\|)""",
    re.VERBOSE,
)
"""One token of GBNF, by kind. A set is of characters; "." has all of them."""
_CHARACTER = re.compile(
    r"""\\(?:(?P<short>[nrt\\"\[\]])|x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8}))
    |(?P<plain>[^\\])""",
    re.VERBOSE | re.DOTALL,
)
_SHORT = {"n": "\n", "r": "\r", "t": "\t"}
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_PARTS = ("text", "set", "name", "close", "repeat")


@dataclass(slots=True)
class _Group:
    """What is in a pair of parentheses, or in a rule, as far as it was read. A part is what a repetition repeats."""

    alternatives: list[list[Symbols]] = field(default_factory=lambda: [[]])

    @property
    def symbols(self) -> list[Symbols]:
        return [tuple(symbol for part in parts for symbol in part) for parts in self.alternatives]


def read_gbnf(text: str) -> tuple[Rules, int]:
    """The rules of a grammar and the number of ``root``. Raises BadRequest, with the line if it has one.

    Refused: what is not GBNF, a rule that is missing or defined twice, left recursion, parentheses nested deeper than
    MAX_DEPTH, more symbols than MAX_SYMBOLS with all repetitions written out, and a grammar that allows no text.
    """
    if len(text) > MAX_GRAMMAR:
        raise refuse(f"the grammar has {len(text)} characters, more than {MAX_GRAMMAR}")
    reader, at = _GbnfReader(), 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _bad(reader.line, f"cannot read {text[at : at + 30]!r}")
        reader.take(found)
        at = found.end()
    root = reader.finish()
    reader.rules.finish(root)
    return reader.rules, root


class _GbnfReader:
    """How far a grammar has been read."""

    def __init__(self) -> None:
        self.line = 1
        self.rules = Rules()
        self._numbers: dict[str, int] = {}
        self._defined: set[str] = set()
        self._named = {"root": 1}
        """Rules that must be defined somewhere, and the line that names them first."""
        self._rule: str | None = None
        """The rule that is being read."""
        self._groups: list[_Group] = []
        """That rule's, and those of the parentheses that are open in it."""
        self._last: str | None = None
        """Kind of the last token but spaces."""

    def take(self, found: re.Match[str]) -> None:
        kind, token = found.lastgroup or "", found.group()
        if kind != "space":
            if kind == "define":
                self._begin_rule(found.group("rule"))
            elif self._rule is None:
                raise _bad(self.line, f"a rule begins with its name and '::=', not with {token!r:.40}")
            else:
                self._take_part(kind, found)
            self._last = kind
        self.line += token.count("\n")

    def _take_part(self, kind: str, found: re.Match[str]) -> None:
        group, token = self._groups[-1], found.group()
        match kind:
            case "text":
                text = "".join(map(chr, self._characters(token[1:-1])))
                group.alternatives[-1].append(self.rules.text(text))
            case "set":
                group.alternatives[-1].append((self._set(token),))
            case "name":
                self._named.setdefault(token, self.line)
                group.alternatives[-1].append((self._number(token),))
            case "bar":
                group.alternatives.append([])
            case "open":
                self._groups.append(_Group())
                if len(self._groups) > MAX_DEPTH:
                    raise _bad(self.line, f"parentheses are nested deeper than {MAX_DEPTH}")
            case "close":
                self._close()
            case "repeat":
                self._repeat(found)

    def _close(self) -> None:
        if len(self._groups) == 1:
            raise _bad(self.line, "parentheses do not match")
        inner = self._groups.pop()
        self._groups[-1].alternatives[-1].append((self.rules.add(*inner.symbols),))

    def _repeat(self, found: re.Match[str]) -> None:
        if self._last not in _PARTS:
            raise _bad(self.line, f"{found.group()!r} has nothing to repeat")
        if found.group("least"):
            least = int(found.group("least"))
            most = least if found.group("comma") is None else found.group("most")
            most = None if most is None else int(most)
            if most is not None and most < least:
                raise _bad(self.line, f"{found.group()!r} counts down")
        else:
            least, most = _REPEATS[found.group()]
        parts = self._groups[-1].alternatives[-1]
        parts[-1] = self.rules.repeat(parts[-1], least, most)

    def _begin_rule(self, name: str) -> None:
        self._end_rule()
        if name in self._defined:
            raise _bad(self.line, f"there is a rule {name!r} already")
        self._defined.add(name)
        self._rule, self._groups = name, [_Group()]

    def _end_rule(self) -> None:
        if len(self._groups) > 1:
            raise _bad(self.line, "a parenthesis is not closed")
        if self._rule is not None:
            self.rules.define(self._number(self._rule), self._groups[0].symbols)

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self.rules.reserve()
        return self._numbers[name]

    def _characters(self, text: str) -> list[int]:
        """The characters that a text of GBNF means."""
        found, at = [], 0
        while at < len(text):
            one = _CHARACTER.match(text, at)
            if one is None:
                raise _bad(self.line, f"cannot read {text[at : at + 30]!r}")
            found.append(_code_point(one))
            at = one.end()
        return found

    def _set(self, token: str) -> Ranges:
        """The characters that are in a set."""
        if token == ".":
            return ANY
        inner = token[1:-1]
        negated = inner.startswith("^")
        pairs, at = [], int(negated)
        while at < len(inner):
            first, at = self._one(inner, at)
            last = first
            if inner.startswith("-", at) and at + 1 < len(inner):
                last, at = self._one(inner, at + 1)
            pairs.append((first, last))
        ranges = ranges_of(pairs)
        return complement(ranges) if negated else ranges

    def _one(self, text: str, at: int) -> tuple[int, int]:
        found = _CHARACTER.match(text, at)
        if found is None:
            raise _bad(self.line, f"cannot read {text[at : at + 30]!r}")
        return _code_point(found), found.end()

    def finish(self) -> int:
        """The text ends here: the number of ``root``."""
        self._end_rule()
        for name, line in self._named.items():
            if name not in self._defined:
                raise _bad(line, f"there is no rule {name!r}")
        return self._numbers["root"]


def _code_point(found: re.Match[str]) -> int:
    kind = found.lastgroup or ""
    value = found.group(kind)
    if kind == "plain":
        return ord(value)
    return ord(_SHORT.get(value, value)) if kind == "short" else min(int(value, 16), 0x10FFFF)


def _bad(line: int, what: str) -> BadRequest:
    return refuse(f"the grammar's line {line}: {what}")
