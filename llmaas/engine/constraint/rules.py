"""A context-free grammar over characters, as a table of rules.

Law: a table that was ``finish``-ed has at most MAX_SYMBOLS symbols, no left recursion, and no way into a rule that has
no end, so each text that can be begun can be completed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmaas.engine.constraint.limits import MAX_SYMBOLS, refuse

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: code points from - to, both included, in ascending order and apart from each other."""
Symbol = int | Ranges
"""A rule's number, or one character of a set."""
Symbols = tuple[Symbol, ...]
"""Symbols one after another; () is the empty text."""

MAX_CHAR = 0x10FFFF
ANY: Ranges = ((0, MAX_CHAR),)


class Rules:
    """Rules by number, each a list of alternatives. Raises BadRequest as soon as they become too many."""

    def __init__(self) -> None:
        self.table: list[list[Symbols]] = []
        self._size = 0
        self._single: dict[int, Ranges] = {}

    @property
    def n_bytes(self) -> int:
        """About the memory that the rules take, and 2 kB for what is found out of even the smallest grammar."""
        return 2_000 + 40 * self._size

    def reserve(self) -> int:
        """The number of a new rule without alternatives; ``define`` gives it some."""
        self._grow(1)
        self.table.append([])
        return len(self.table) - 1

    def define(self, rule: int, alternatives: Iterable[Sequence[Symbol]]) -> None:
        for alternative in alternatives:
            self._grow(1 + len(alternative))
            self.table[rule].append(tuple(alternative))

    def add(self, *alternatives: Sequence[Symbol]) -> int:
        """A new rule."""
        rule = self.reserve()
        self.define(rule, alternatives)
        return rule

    def text(self, text: str) -> Symbols:
        """The characters of a text, one after another."""
        self._grow(len(text))
        return tuple(self._single.setdefault(ord(c), ((ord(c), ord(c)),)) for c in text)

    def optional(self, part: Sequence[Symbol]) -> Symbol:
        return self.add(part, ())

    def repeat(self, part: Sequence[Symbol], least: int, most: int | None) -> Symbols:
        """``part`` from ``least`` to ``most`` times; None: without end."""
        part = tuple(part)
        if len(part) > 1:
            part = (self.add(part),)
        if (least if most is None else most) > MAX_SYMBOLS:
            raise _too_large()
        if most is None:
            loop = self.reserve()
            self.define(loop, [(*part, loop), ()])
            rest: Symbols = (loop,)
        else:
            rest = ()
            for _ in range(most - least):
                rest = (self.add((*part, *rest), ()),)
        self._grow(least)
        return part * least + rest

    def finish(self, root: int) -> None:
        """Remove what cannot be completed. Raises BadRequest if nothing is left, and for left recursion."""
        _prune(self.table)
        if not self.table[root]:
            raise refuse("the grammar allows no text at all")
        _refuse_left_recursion(self.table, root)

    def _grow(self, n: int) -> None:
        self._size += n
        if self._size > MAX_SYMBOLS:
            raise _too_large()


def _too_large() -> Exception:
    return refuse(f"the grammar has more than {MAX_SYMBOLS} symbols, with all repetitions written out")


def _closure(table: list[list[Symbols]], characters_count: bool) -> list[bool]:
    """Rules that can end: with characters in them, or without any (``characters_count``: then none that has one).

    Alternatives are numbered through all rules, which takes a third of the memory of pairs.
    """
    owners: list[int] = []
    """The rule of each alternative."""
    missing: list[int] = []
    """How many of an alternative's symbols are not known to end."""
    users: list[list[int]] = [[] for _ in table]
    """The alternatives that name a rule, once per naming."""
    for rule, alternatives in enumerate(table):
        for alternative in alternatives:
            missing.append(sum(isinstance(symbol, int) or characters_count or not symbol for symbol in alternative))
            for symbol in alternative:
                if isinstance(symbol, int):
                    users[symbol].append(len(owners))
            owners.append(rule)
    found = [False] * len(table)
    ready = [owner for owner, n in zip(owners, missing, strict=True) if n == 0]
    while ready:
        rule = ready.pop()
        if not found[rule]:
            found[rule] = True
            for user in users[rule]:
                missing[user] -= 1
                if missing[user] == 0:
                    ready.append(owners[user])
    return found


def _prune(table: list[list[Symbols]]) -> None:
    """Take out alternatives with a rule that never ends, or an empty set of characters."""
    ends = _closure(table, characters_count=False)
    for rule, alternatives in enumerate(table):
        table[rule] = [a for a in alternatives if all(ends[s] if isinstance(s, int) else s for s in a)]


def _refuse_left_recursion(table: list[list[Symbols]], root: int) -> None:
    """Raise BadRequest if a rule can begin with itself: the machine would never come to a character."""
    empty = _closure(table, characters_count=True)
    begins: list[list[int]] = []
    for alternatives in table:
        first: list[int] = []
        for alternative in alternatives:
            for symbol in alternative:
                if not isinstance(symbol, int):
                    break
                first.append(symbol)
                if not empty[symbol]:
                    break
        begins.append(first)
    state = [0] * len(table)  # 1: on the path, 2: done
    path = [(root, iter(begins[root]))]
    state[root] = 1
    while path:
        rule, rest = path[-1]
        following = next(rest, None)
        if following is None:
            state[rule] = 2
            path.pop()
        elif state[following] == 1:
            raise refuse("the grammar has left recursion: a rule that begins with itself, or repeats an empty text")
        elif state[following] == 0:
            state[following] = 1
            path.append((following, iter(begins[following])))
