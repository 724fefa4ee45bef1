"""The regular expressions of JSON schemas that mean the same everywhere: in ECMA-262, in Python, and in llguidance.

Law: read in one pass, without backtracking. What is not read here is refused, and so is what the three read
differently; where one has a larger set of characters than another (``\\w``, ``.``), the set that all have is taken, so
an answer may be narrower than its pattern but never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from llmaas.engine.constraint.character_sets import complement, difference, of_text, ranges_of, union
from llmaas.engine.constraint.limits import MAX_PATTERN, MAX_PATTERN_COUNT, refuse
from llmaas.engine.constraint.rules import ANY, Ranges
from llmaas.errors import BadRequest
from llmaas.frozen import frozen


@frozen
class Repeat:
    """``part`` from ``least`` to ``most`` times; None: without end."""

    part: Node
    least: int
    most: int | None


@frozen
class Choice:
    """One of several; each of them is parts one after another."""

    options: tuple[tuple[Node, ...], ...]


Node = Ranges | Repeat | Choice
"""A set of characters, of which there is one, or something that is made of them."""

_DIGITS = ranges_of([(48, 57)])
_LETTERS = ranges_of([(65, 90), (97, 122)])
_WORD = union(_DIGITS, _LETTERS, of_text("_"))
_SPACE = of_text("\t\n\v\f\r ")
_UNSURE = ranges_of([(0x1C, 0x1F), (0x80, 0x10FFFF)])
"""Characters of which the three do not agree whether they are digits, letters or spaces."""
_CLASSES = {
    "d": _DIGITS,
    "w": _WORD,
    "s": _SPACE,
    "D": difference(complement(_DIGITS), _UNSURE),
    "W": difference(complement(_WORD), _UNSURE),
    "S": difference(complement(_SPACE), _UNSURE),
}
"""What all three count as one."""
_WIDEST = {name: union(characters, _UNSURE) for name, characters in _CLASSES.items()}
"""What any of the three counts as one: what a negated set must leave out."""
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_DOT = complement(of_text("\n\r\u2028\u2029"))
_ANYTHING = Repeat(ANY, 0, None)
_PUNCTUATION = frozenset("^$\\.*+?()[]{}|/-!\"#%&',:;<=>@`~ _")
_COUNTS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_MAX_DEPTH = 20
"""Of parentheses. It bounds how deep functions here call themselves."""


def read_pattern(pattern: str) -> Choice:
    """What texts match as a whole. Raises BadRequest for what cannot be used.

    A pattern may match anywhere in a text, so there is ``.*`` on each side that has no ``^`` or ``$``.
    """
    if len(pattern) > MAX_PATTERN:
        raise refuse(f"the json_schema's pattern has {len(pattern)} characters, more than {MAX_PATTERN}")
    reader = _PatternReader(pattern)
    found = reader.choice(depth=0)
    if reader.at < len(pattern):
        raise reader.bad("a parenthesis is closed that was not opened")
    return found


def reads_alike(pattern: str) -> bool:
    """Whether ``read_pattern`` has left nothing out: the pattern has no ``.`` and no class of characters."""
    reader = _PatternReader(pattern)
    reader.choice(depth=0)
    return reader.exact


class _PatternReader:
    """Reads by recursive descent."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0
        self.exact = True

    def bad(self, what: str) -> BadRequest:
        return refuse(f"the json_schema's pattern {self._text!r:.80}, at character {self.at + 1}: {what}")

    def _next(self) -> str:
        return self._text[self.at : self.at + 1]

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def choice(self, depth: int) -> Choice:
        """Alternatives up to the end, or to the parenthesis that closes them."""
        if depth > _MAX_DEPTH:
            raise self.bad(f"parentheses are nested deeper than {_MAX_DEPTH}")
        options = [self._option(depth)]
        while self._take("|"):
            options.append(self._option(depth))
        return Choice(tuple(options))

    def _option(self, depth: int) -> tuple[Node, ...]:
        parts: list[Node] = []
        begins = self._take("^")
        ends = False
        if begins and depth:
            raise self.bad("'^' is used within parentheses")
        while (c := self._next()) and c not in "|)":
            if ends:
                raise self.bad("something follows '$'")
            if c == "$" and not depth:
                self.at += 1
                ends = True
            else:
                parts.append(self._repeated(self._atom(depth)))
        if depth:
            return tuple(parts)
        return (*(() if begins else (_ANYTHING,)), *parts, *(() if ends else (_ANYTHING,)))

    def _atom(self, depth: int) -> Node:
        c = self._next()
        if c in "^$*+?{}]":
            raise self.bad(f"{c!r} is not where it can be used")
        self.at += 1
        if c == ".":
            self.exact = False
            return _DOT
        if c == "[":
            return self._set()
        if c == "\\":
            return self._escape(_CLASSES)
        if c == "(":
            if self._next() == "?" and not self._take("?:"):
                raise self.bad("look-around, flags and named groups are not supported")
            found = self.choice(depth + 1)
            if not self._take(")"):
                raise self.bad("a parenthesis is not closed")
            return found
        return of_text(c)

    def _repeated(self, part: Node) -> Node:
        c = self._next()
        if c == "" or c not in "*+?{":
            return part
        self.at += 1
        least, most = self._counts() if c == "{" else _COUNTS[c]
        self._take("?")  # what is matched first does not change what matches
        if self._next() and self._next() in "*+?{":
            raise self.bad("a repetition is repeated")
        repeat = Repeat(part, least, most)
        if counted(repeat) > MAX_PATTERN_COUNT:
            raise self.bad(f"repetitions count beyond {MAX_PATTERN_COUNT}")
        return repeat

    def _counts(self) -> tuple[int, int | None]:
        end = self._text.find("}", self.at, self.at + 20)
        least, comma, most = self._text[self.at : max(end, self.at)].partition(",")
        if not least.isascii() or not least.isdigit() or (most and not (most.isascii() and most.isdigit())):
            raise self.bad("after '{' comes a count, as in {2} or {2,} or {2,5}")
        self.at = end + 1
        low = int(least)
        high = low if not comma else int(most) if most else None
        if high is not None and high < low:
            raise self.bad("a repetition counts down")
        return low, high

    def _escape(self, classes: Mapping[str, Ranges]) -> Ranges:
        c = self._next()
        self.at += 1
        if c in classes:
            self.exact = False
            return classes[c]
        if c in _ESCAPES:
            return of_text(_ESCAPES[c])
        if c in _PUNCTUATION:
            return of_text(c)
        digits = {"x": 2, "u": 4}.get(c, 0)
        code = self._text[self.at : self.at + digits]
        if digits and len(code) == digits and all(d in "0123456789abcdefABCDEF" for d in code):
            self.at += digits
            if 0xD800 <= int(code, 16) <= 0xDFFF:
                raise self.bad("half of a surrogate pair")
            return of_text(chr(int(code, 16)))
        raise self.bad(f"'\\{c}' is not supported")

    def _set(self) -> Ranges:
        negated = self._take("^")
        classes = _WIDEST if negated else _CLASSES
        found: Ranges = ()
        while not self._take("]"):
            one = self._member(classes)
            if self._next() == "-" and self._text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self._member(classes)
                if not (_is_one(one) and _is_one(last)) or one > last:
                    raise self.bad("a range of characters is from one to a later one")
                one = ranges_of([(one[0][0], last[0][0])])
            found = union(found, one)
        if not found:
            raise self.bad("a set of no characters")
        return complement(found) if negated else found

    def _member(self, classes: Mapping[str, Ranges]) -> Ranges:
        c = self._next()
        if c == "":
            raise self.bad("'[' is not closed")
        self.at += 1
        if c == "[":
            raise self.bad("write '\\[' for a bracket in a set")
        return self._escape(classes) if c == "\\" else of_text(c)


def _is_one(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def counted(node: Node) -> int:
    """How many copies of its parts a node stands for, with the repetitions that it counts written out."""
    if isinstance(node, Repeat):
        return counted(node.part) * max(1, node.least, node.most or 0)
    if isinstance(node, Choice):
        return max((counted(part) for option in node.options for part in option), default=1)
    return 1


def lengths(node: Node) -> tuple[int, float]:
    """How many characters a text has that matches, at least and at most (which may be infinite)."""
    if isinstance(node, Repeat):
        least, most = lengths(node.part)
        times = math.inf if node.most is None else node.most
        return least * node.least, most * times if most and times else 0
    if isinstance(node, Choice):
        options = [[lengths(part) for part in option] for option in node.options]
        return min(sum(low for low, _ in parts) for parts in options), max(sum(high for _, high in p) for p in options)
    return 1, 1


class Regex(str):
    """A pattern in the syntax of Rust's ``regex``, from ``^`` to ``$``, and what it was made of."""

    choice: Choice

    def __new__(cls, choice: Choice) -> Regex:
        regex = super().__new__(cls, f"^{_regex(choice)}$")
        regex.choice = choice
        return regex


def _regex(node: Node) -> str:
    if isinstance(node, Repeat):
        most = "" if node.most is None else str(node.most)
        return f"{_regex(node.part)}{{{node.least},{most}}}"
    if isinstance(node, Choice):
        return "(?:" + "|".join("".join(map(_regex, option)) for option in node.options) + ")"
    return "[" + "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in node) + "]"
