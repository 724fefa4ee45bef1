"""A machine that reads an answer by the rules of a grammar, byte by byte.

Law: plain Python, and bounded: MAX_STACKS readings at once, MAX_WORK steps for a token, MAX_NODES entries in all. A
token that would go beyond counts as not allowed, so an answer keeps to the grammar whatever it costs. An answer that
costs too much in all is given up.

It is a pushdown automaton that follows all readings at once, as llama.cpp's grammars do. Equal stacks are one object,
and where a byte leads from a set of stacks is kept, so that most bytes cost one look-up. Rejected: llama.cpp's own
grammars. They end the process on a token that they do not allow, call themselves without bound, and nothing limits the
time and memory that one token takes.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from llmaas.engine.constraint.limits import (
    ANSWER_WORK,
    MAX_MASK_WORK,
    MAX_NODES,
    MAX_STACKS,
    MAX_WORK,
    TOKEN_WORK,
)
from llmaas.engine.constraint.port import Mask, TooComplex
from llmaas.engine.constraint.rules import Ranges, Rules, Symbols
from llmaas.engine.constraint.utf8 import is_start, span
from llmaas.engine.constraint.vocabulary import Vocabulary


class Stack:
    """What is left to read: ``symbols`` from ``at`` on, and then what ``below`` has. One object for equal stacks."""

    __slots__ = ("at", "below", "symbols")

    def __init__(self, symbols: Symbols, at: int, below: Stack | None) -> None:
        self.symbols, self.at, self.below = symbols, at, below


class GrammarState:
    """Where an answer stands: its readings, each of which wants a character next, and bytes of a character begun.

    ``following``: where each byte leads, as far as it was asked; None: nowhere.
    """

    __slots__ = ("begun", "by_character", "complete", "following", "mask", "others", "stacks")

    def __init__(self, stacks: tuple[Stack, ...], complete: bool, begun: bytes = b"") -> None:
        self.stacks, self.complete, self.begun = stacks, complete, begun
        self.following: dict[int, GrammarState | None] = {}
        self.mask: Mask | None = None
        self.by_character: dict[int, list[Stack]] | None = None
        """The stacks that want exactly one character; ``others`` has the rest. None: not sorted yet."""
        self.others: list[Stack] = []

    def wanting(self, character: int) -> list[Stack]:
        """Among others, the stacks that may want a character."""
        if self.by_character is None:
            self.by_character = {}
            for stack in self.stacks:
                ranges: Ranges = stack.symbols[stack.at]  # type: ignore[assignment]
                if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
                    self.by_character.setdefault(ranges[0][0], []).append(stack)
                else:
                    self.others.append(stack)
        return self.by_character.get(character, []) + self.others


class GrammarMachine:
    """The rules and everything that was found out about them; shared by all answers that keep to them.

    One thread at a time. Raises TooComplex if even the first character can be read in too many ways.
    """

    def __init__(self, rules: Rules, root: int, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._table = rules.table
        self._work, self._n_nodes = MAX_WORK, 0
        """Steps that are left for this token, and entries that there are."""
        self.may_work = MAX_WORK
        self._stacks: dict[tuple[int, int, int], Stack] = {}
        self._places: dict[tuple[frozenset[int], bool], GrammarState] = {}
        self.start = self._place(self._expand([(symbols, 0, None) for symbols in self._table[root]]))

    def next(self, place: GrammarState, piece: bytes) -> GrammarState | None:
        """Where the bytes of a token lead; None: they are not allowed, or take too much work."""
        self._work = self.may_work = MAX_WORK
        if self._n_nodes > MAX_NODES:
            self._forget()
        return self._try(place, piece)

    def mask(self, place: GrammarState) -> Mask:
        """The tokens that are allowed at a place."""
        self._work = self.may_work
        if place.mask is None:
            self._work = self.may_work = MAX_MASK_WORK
            place.mask = self._mask(place)
            self._n_nodes += place.mask.nbytes // 100
        return place.mask

    @property
    def worked(self) -> int:
        """The steps that the last ``next`` or ``mask`` took."""
        return self.may_work - self._work

    # -- bytes

    def _walk(self, place: GrammarState, piece: bytes) -> GrammarState | None:
        here: GrammarState | None = place
        for byte in piece:
            if here is None:
                return None
            if byte not in here.following:
                here.following[byte] = self._step(here, byte)
            here = here.following[byte]
        return here

    def _try(self, place: GrammarState, byte: bytes) -> GrammarState | None:
        """As ``_walk``; what takes too much work counts as not allowed."""
        try:
            return self._walk(place, byte)
        except TooComplex:
            return None

    def _step(self, place: GrammarState, byte: int) -> GrammarState | None:
        begun = place.begun + bytes([byte])
        if not place.begun and byte < 0x80:
            return self._read(place.wanting(byte), byte)
        if not place.begun and not is_start(byte):
            return None
        low, high, complete = span(begun)
        if low > high:
            return None
        if complete:
            return self._read(place.wanting(low), low)
        self._count(len(place.stacks))
        if any(_meets(stack.symbols[stack.at], low, high) for stack in place.stacks):
            self._n_nodes += 1
            return GrammarState(place.stacks, False, begun)
        return None

    def _read(self, stacks: list[Stack], character: int) -> GrammarState | None:
        self._count(1 + len(stacks))
        taken = [s for s in stacks if _meets(s.symbols[s.at], character, character)]
        return self._place(self._expand([(s.symbols, s.at + 1, s.below) for s in taken])) if taken else None

    # -- stacks

    def _expand(self, todo: list[tuple[Symbols, int, Stack | None]]) -> tuple[dict[int, Stack], bool]:
        """The stacks, by identity, that want a character, as these rests begin; and whether one is at its end."""
        found: dict[int, Stack] = {}
        complete, seen = False, set()
        while todo:
            symbols, at, below = todo.pop()
            key = id(symbols), at, id(below)
            if key in seen:
                continue
            seen.add(key)
            self._count(1)
            if at == len(symbols):
                if below is None:
                    complete = True
                else:
                    todo.append((below.symbols, below.at, below.below))
                continue
            symbol = symbols[at]
            if isinstance(symbol, int):
                rest = below if at + 1 == len(symbols) else self._stack(symbols, at + 1, below)
                todo.extend((alternative, 0, rest) for alternative in self._table[symbol])
                self._count(len(self._table[symbol]))
            else:
                stack = self._stack(symbols, at, below)
                found[id(stack)] = stack
                if len(found) > MAX_STACKS:
                    raise TooComplex(f"the grammar can be read in more than {MAX_STACKS} ways at one place")
        return found, complete

    def _stack(self, symbols: Symbols, at: int, below: Stack | None) -> Stack:
        key = id(symbols), at, id(below)
        stack = self._stacks.get(key)
        if stack is None:
            stack = self._stacks[key] = Stack(symbols, at, below)
            self._n_nodes += 1
        return stack

    def _place(self, expanded: tuple[dict[int, Stack], bool]) -> GrammarState:
        found, complete = expanded
        key = frozenset(found), complete
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = GrammarState(tuple(found.values()), complete)
            self._n_nodes += 2 + len(found)
        return place

    def _forget(self) -> None:
        """Begin to find out anew. The answers that use the machine keep the places where they stand."""
        for place in self._places.values():
            place.following.clear()
            place.mask = None
        self.start.following.clear()
        self._stacks, self._places, self._n_nodes = {}, {}, 0

    def _count(self, n: int) -> None:
        self._work -= n
        if self._work < 0:
            raise TooComplex(f"the grammar takes more than {MAX_WORK} steps for one token")

    # -- all tokens at once

    def _mask(self, place: GrammarState) -> Mask:
        """Goes through the tokens in the order of their bytes, and past all that begin with bytes not allowed."""
        pieces, tokens = self.vocabulary.ordered
        mask = np.zeros(self.vocabulary.n_vocab, np.bool_)
        mask[self.vocabulary.ends] = place.complete and not place.begun
        path, places = b"", [place]  # places[i] is where path[:i] leads
        at = 0
        while at < len(pieces):
            piece = pieces[at]
            same = _common(path, piece)
            del places[same + 1 :]
            here: GrammarState | None = places[-1]
            for i in range(same, len(piece)):
                assert here is not None
                following = here.following
                byte = piece[i]
                here = following[byte] if byte in following else self._try(here, piece[i : i + 1])
                if here is None:
                    at = bisect_left(pieces, _after(piece[: i + 1]), at)
                    path = piece[:i]
                    break
                places.append(here)
            else:
                mask[tokens[at]] = True
                path = piece
                at += 1
        return mask


def _meets(symbol: object, low: int, high: int) -> bool:
    """Whether a set of characters has one in low .. high."""
    ranges: Ranges = symbol  # type: ignore[assignment]
    if len(ranges) <= 4:
        return any(a <= high and low <= b for a, b in ranges)
    at = bisect_left(ranges, (low + 1,))  # the first that begins after ``low``
    return (at > 0 and ranges[at - 1][1] >= low) or (at < len(ranges) and ranges[at][0] <= high)


def _common(a: bytes, b: bytes) -> int:
    n = 0
    for x, y in zip(a, b):  # noqa: B905 - the shorter one ends it
        if x != y:
            break
        n += 1
    return n


def _after(prefix: bytes) -> bytes:
    """The least bytes after all that begin with ``prefix``. No piece of UTF-8 begins with 255 only."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else prefix + b"\xff" * 8


class MachineConstraint:
    """A ``Constraint``: one answer's way through a machine. A token takes some 20 us, a mask up to 0.3 s."""

    masks_are_cheap = False

    def __init__(self, machine: GrammarMachine) -> None:
        self._machine = machine
        self._place = machine.start
        self._allowance = ANSWER_WORK
        """Steps that the answer may still take."""

    def accept(self, token: int) -> bool:
        place, vocabulary = self._place, self._machine.vocabulary
        if vocabulary.is_end(token):
            return place.complete and not place.begun
        piece = vocabulary.pieces[token]
        if not piece:
            return False
        following = self._machine.next(place, piece)
        self._charge()
        if following is None:
            return False
        self._place = following
        self._allowance += TOKEN_WORK
        return True

    def _charge(self) -> None:
        """The engine has other answers to go on with."""
        self._allowance -= self._machine.worked
        if self._allowance < 0:
            raise TooComplex("the grammar can be read in so many ways that following it takes too long")

    def allowed(self) -> Mask:
        mask = self._machine.mask(self._place)
        self._charge()
        if not mask.any():
            raise TooComplex("the model has no token with which its answer could go on by the grammar")
        return mask
