"""Rules for JSON itself: values, strings, white space.

Law: pure; every text that they allow is JSON (RFC 8259), with the white space that models write and no more.
"""

from __future__ import annotations

import json
from functools import cached_property

from llmaas.engine.constraint.character_sets import complement, difference, of_text, ranges_of, union
from llmaas.engine.constraint.pattern import Choice, Node, Repeat
from llmaas.engine.constraint.rules import Ranges, Rules, Symbol, Symbols

_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_CONTROL = union(ranges_of([(0, 0x1F)]), of_text("\x7f"))
_ESCAPED = union(_CONTROL, of_text('"\\'))
_PLAIN = complement(_ESCAPED)
DIGIT = ranges_of([(48, 57)])
_NONZERO = ranges_of([(49, 57)])
_SIGN = of_text("+-")
_E = of_text("eE")
_SPACE = of_text(" \t")


class JsonRules:
    """Adds what is needed to ``rules``, once."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    @cached_property
    def space(self) -> int:
        """What may be between two tokens: nothing, a space, or one or two line ends and an indentation."""
        rules = self.rules
        line = (*rules.repeat(rules.text("\n"), 1, 2), *rules.repeat((_SPACE,), 0, 20))
        return rules.add((), rules.text(" "), line)

    def literal(self, value: object) -> Symbols:
        """A value of JSON, written in the shortest way."""
        return self.rules.text(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("\x7f", "\\u007f"))

    # -- strings

    def character(self, characters: Ranges) -> Symbols:
        """One character of a set, within a string; control characters only if there is nothing else in the set."""
        rules = self.rules
        plain = difference(characters, _ESCAPED)
        if plain == characters:
            return (plain,)
        ways: list[Symbols] = [(plain,)] if plain else []
        for text, escape in _SHORT.items():
            if difference(of_text(text), characters) == ():
                ways.append(rules.text("\\" + escape))
        if not ways:
            for first, last in characters:
                ways += [rules.text(f"\\u{code:04x}") for code in range(first, last + 1)]
        return (rules.add(*ways),)

    @cached_property
    def any_character(self) -> Symbols:
        return self.character(((0, 0x10FFFF),))

    def string(self, least: int = 0, most: int | None = None) -> Symbols:
        quote = self.rules.text('"')
        return (*quote, *self.rules.repeat(self.any_character, least, most), *quote)

    def matching(self, pattern: Choice) -> Symbols:
        """A string that matches a pattern."""
        quote = self.rules.text('"')
        return (*quote, *self._node(pattern), *quote)

    def _node(self, node: Node) -> Symbols:
        if isinstance(node, Repeat):
            return self.rules.repeat(self._node(node.part), node.least, node.most)
        if isinstance(node, Choice):
            options = [tuple(s for part in option for s in self._node(part)) for option in node.options]
            return options[0] if len(options) == 1 else (self.rules.add(*options),)
        return self.character(node)

    # -- numbers

    @cached_property
    def natural(self) -> int:
        """0, 1, 2 ..."""
        rules = self.rules
        return rules.add(rules.text("0"), (_NONZERO, *rules.repeat((DIGIT,), 0, None)))

    @cached_property
    def integer(self) -> int:
        return self.rules.add((self.natural,), (*self.rules.text("-"), self.natural))

    @cached_property
    def fraction(self) -> Symbol:
        """A point and digits, or nothing."""
        return self.rules.optional((*self.rules.text("."), *self.rules.repeat((DIGIT,), 1, None)))

    def number(self) -> Symbols:
        rules = self.rules
        exponent = rules.optional((_E, rules.optional((_SIGN,)), *rules.repeat((DIGIT,), 1, 2)))
        return (self.integer, self.fraction, exponent)

    def fraction_between(self, low: int | None, high: int | None) -> Symbols:
        """Numbers from ``low`` to ``high``, both included, whole ones and others."""
        ways: list[Symbols] = []
        if high is None or high >= 0:
            ways.append(self._fractions(max(0, low or 0), high))
        if low is None or low < 0:
            least = 0 if high is None or high >= 0 else -high
            ways.append((*self.rules.text("-"), *self._fractions(least, None if low is None else -low)))
        return (self.rules.add(*ways),)

    def _fractions(self, low: int, high: int | None) -> Symbols:
        """From ``low`` to ``high``, both 0 or more."""
        if high is None:
            return (self._naturals(low, None), self.fraction)
        last = (*self.rules.text(str(high)), self.rules.optional(self.rules.text(".0")))
        return last if low == high else (self.rules.add((self._naturals(low, high - 1), self.fraction), last),)

    def between(self, low: int | None, high: int | None) -> Symbols:
        """Whole numbers from ``low`` to ``high``, both included."""
        ways: list[Symbols] = []
        minus = self.rules.text("-")
        if high is None or high >= 0:
            ways.append((self._naturals(max(0, low or 0) if low is not None else 0, high),))
        if low is None or low < 0:
            least = 1 if high is None or high >= 0 else -high
            ways.append((*minus, self._naturals(least, None if low is None else -low)))
        return (self.rules.add(*ways),)

    def _naturals(self, low: int, high: int | None) -> int:
        """From ``low`` to ``high``, both 0 or more."""
        rules, ways = self.rules, []
        digits = len(str(low))
        if high is None:
            ways.append((_NONZERO, *rules.repeat((DIGIT,), digits, None)))
            high = 10**digits - 1
        while digits <= len(str(high)):
            first, last = max(low, 10 ** (digits - 1) if digits > 1 else 0), min(high, 10**digits - 1)
            if first <= last:
                ways += self._same_length(str(first), str(last))
            digits += 1
        return rules.add(*ways)

    def _same_length(self, low: str, high: str) -> list[Symbols]:
        """Numbers of as many digits as both bounds have."""
        rules = self.rules
        if low == high:
            return [rules.text(low)]
        if len(low) == 1:
            return [(_digits(low, high),)]
        if low[0] == high[0]:
            return [(*rules.text(low[0]), rules.add(*self._same_length(low[1:], high[1:])))]
        rest = len(low) - 1
        ways: list[Symbols] = []
        first, last = int(low[0]), int(high[0])
        if low[1:] != "0" * rest:
            ways.append((*rules.text(low[0]), rules.add(*self._same_length(low[1:], "9" * rest))))
            first += 1
        if high[1:] != "9" * rest:
            ways.append((*rules.text(high[0]), rules.add(*self._same_length("0" * rest, high[1:]))))
            last -= 1
        if first <= last:
            ways.append((_digits(str(first), str(last)), *((DIGIT,) * rest)))
        return ways

    # -- values

    @cached_property
    def value(self) -> int:
        """Any value of JSON."""
        rules = self.rules
        value = rules.reserve()
        words = [rules.text(word) for word in ("null", "true", "false")]
        ways = [*words, self.number(), self.string(), self.array((value,)), self.map(self.string(), (value,))]
        rules.define(value, ways)
        return value

    def array(self, item: Symbols, least: int = 0, most: int | None = None) -> Symbols:
        """A list of as many items, all alike."""
        rules, space = self.rules, self.space
        begin, end = (*rules.text("["), space), (space, *rules.text("]"))
        one = item if len(item) == 1 else (rules.add(item),)
        if most == 0:
            return (*begin, *end)
        more = rules.repeat(
            (space, *rules.text(","), space, *one), max(0, least - 1), None if most is None else most - 1
        )
        filled = (*begin, *one, *more, *end)
        return filled if least else (rules.add((*begin, *rules.text("]")), filled),)

    def map(self, key: Symbols, value: Symbols, least: int = 0, most: int | None = None) -> Symbols:
        """An object with keys that are all alike, and values that are. A key may come twice; ``least`` is 0 or 1."""
        rules, space = self.rules, self.space
        begin, end = (*rules.text("{"), space), (space, *rules.text("}"))
        nothing = (*begin, *rules.text("}"))
        if most == 0:
            return (rules.add(*[nothing] * (1 - least)),)
        member = (rules.add((*key, space, *rules.text(":"), space, *value)),)
        more = rules.repeat((space, *rules.text(","), space, *member), 0, None if most is None else most - 1)
        return (rules.add(*[nothing] * (1 - least), (*begin, *member, *more, *end)),)


def _digits(first: str, last: str) -> Ranges:
    return ranges_of([(ord(first), ord(last))])
