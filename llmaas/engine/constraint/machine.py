"""A machine that reads an answer by the rules of a grammar, byte by byte.

Law: plain Python, and bounded: MAX_STACKS readings at once, MAX_WORK steps for a token, MAX_NODES entries for all
machines together. An answer whose next token would go beyond is given up, and so is one that costs too much in all:
a grammar that is too ambiguous ends with an error, never with an answer that was bent by a limit.

It is a pushdown automaton that follows all readings at once, as llama.cpp's grammars do. Equal stacks are one object,
and where a byte leads from a set of stacks is kept, so that most bytes cost one look-up. Rejected: llama.cpp's own
grammars. They end the process on a token that they do not allow, call themselves without bound, and nothing limits the
time and memory that one token takes.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Generator

import numpy as np
import numpy.typing as npt

from llmaas.engine.constraint.limits import (
    ANSWER_WORK,
    MASK_PART,
    MASK_WORK,
    MAX_MASK_WORK,
    MAX_NODES,
    MAX_STACKS,
    MAX_WORK,
    TOKEN_WORK,
)
from llmaas.engine.constraint.masks import Unknown, mask_from
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

    __slots__ = ("begun", "complete", "following", "mask", "sorted", "stacks")

    def __init__(self, stacks: tuple[Stack, ...], complete: bool, begun: bytes = b"") -> None:
        self.stacks, self.complete, self.begun = stacks, complete, begun
        self.following: dict[int, GrammarState | None] = {}
        self.mask: npt.NDArray[np.uint8] | None = None
        """``GrammarMachine.mask`` in bits, if it was asked for."""
        self.sorted: SortedStacks | None = None
        """The stacks by what they want, if that was asked."""


class SortedStacks:
    """Stacks that want exactly one character, by that, and the others."""

    __slots__ = ("by_character", "others", "wide")

    def __init__(self, stacks: tuple[Stack, ...]) -> None:
        self.by_character: dict[int, list[Stack]] = {}
        self.others: list[Stack] = []
        for stack in stacks:
            ranges: Ranges = stack.symbols[stack.at]  # type: ignore[assignment]
            if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
                self.by_character.setdefault(ranges[0][0], []).append(stack)
            else:
                self.others.append(stack)
        self.wide = [character for character in self.by_character if character >= 0x80]
        """The characters of more than one byte that stacks want."""


class MachineMemory:
    """What machines have found out, all together: they forget it when it becomes much. On one thread."""

    def __init__(self) -> None:
        self._machines: weakref.WeakSet[GrammarMachine] = weakref.WeakSet()
        self._n_nodes = 0

    def add(self, machine: GrammarMachine, n_nodes: int) -> None:
        """The machine has found out so much more."""
        self._machines.add(machine)
        self._n_nodes += n_nodes
        if self._n_nodes > MAX_NODES:
            for each in self._machines:
                each.forget()
            self._n_nodes = 0


class GrammarMachine:
    """The rules and everything that was found out about them; shared by all answers that keep to them.

    Made on any thread, used on one. Raises TooComplex if even the first character can be read in too many ways.
    """

    def __init__(self, rules: Rules, root: int, vocabulary: Vocabulary, memory: MachineMemory) -> None:
        self.vocabulary, self._memory = vocabulary, memory
        self._table = rules.table
        self._n_new = 0
        """Entries that ``memory`` has not been told of."""
        self._work = self._may_work = self._had_work = MAX_WORK
        """Steps that are left for this token or mask, how many it may take, and how many were left before this part."""
        self._stacks: dict[tuple[int, int, int], Stack] = {}
        self._places: dict[tuple[frozenset[int], bool], GrammarState] = {}
        self.start = self._place(self._expand([(symbols, 0, None) for symbols in self._table[root]]))

    def next(self, place: GrammarState, piece: bytes) -> GrammarState | None:
        """Where the bytes of a token lead; None: they are not allowed. Raises TooComplex."""
        self._begin(MAX_WORK)
        here: GrammarState | None = place
        for byte in piece:
            if here is None:
                return None
            here = self._follow(here, byte)
        return here

    def mask(self, place: GrammarState) -> Generator[None, None, Mask]:
        """Returns the tokens (n_vocab) that are allowed at a place, and those of which it takes too much to find out.
        Yields after each MASK_PART steps; other answers may use the machine meanwhile."""
        self._begin(MAX_MASK_WORK)
        if place.mask is None:
            self._count(MASK_WORK)
            parts = mask_from(place, self._follow_if_possible, self.vocabulary)
            while True:
                try:
                    next(parts)
                except StopIteration as end:
                    mask = end.value
                    break
                if self._had_work - self._work >= MASK_PART:
                    left = self._work
                    yield
                    self._begin(MAX_MASK_WORK, left)
            mask[self.vocabulary.ends] = place.complete and not place.begun
            place.mask = np.packbits(mask)
            self._n_new += place.mask.nbytes // 100
        return np.unpackbits(place.mask, count=self.vocabulary.n_vocab).view(np.bool_)

    @property
    def worked(self) -> int:
        """The steps that the last ``next`` took, or ``mask`` since it yielded last."""
        return self._had_work - max(self._work, 0)

    def forget(self) -> None:
        """Begin to find out anew. The answers that use the machine keep the places where they stand."""
        for place in self._places.values():
            place.following.clear()
            place.mask = None
        self.start.following.clear()
        self.start.mask = None
        self._stacks, self._places, self._n_new = {}, {}, 0

    def _begin(self, may_work: int, left: int | None = None) -> None:
        if self._n_new:
            self._memory.add(self, self._n_new)
            self._n_new = 0
        self._may_work = may_work
        self._work = self._had_work = may_work if left is None else left

    def _count(self, n: int) -> None:
        self._work -= n
        if self._work < 0:
            raise TooComplex(f"the grammar takes more than {self._may_work} steps at one place: it is too ambiguous")

    # -- bytes

    def _follow(self, place: GrammarState, byte: int) -> GrammarState | None:
        self._work -= 1
        if byte not in place.following:
            place.following[byte] = self._step(place, byte)
            self._n_new += 1
        return place.following[byte]

    def _follow_if_possible(self, place: GrammarState, byte: int) -> GrammarState | Unknown | None:
        """As ``_follow``. Raises TooComplex only if there is no work left for the mask as a whole."""
        try:
            return self._follow(place, byte)
        except TooComplex:
            if self._work < 0:
                raise
            return Unknown.TOO_AMBIGUOUS

    def _step(self, place: GrammarState, byte: int) -> GrammarState | None:
        begun = place.begun + bytes([byte])
        if not place.begun and byte < 0x80:
            return self._read(place, byte)
        if not place.begun and not is_start(byte):
            return None
        low, high, complete = span(begun)
        if low > high:
            return None
        if complete:
            return self._read(place, low)
        stacks = self._sorted(place)
        self._count(len(stacks.others) + len(stacks.wide))
        wanted = any(low <= character <= high for character in stacks.wide)
        if not wanted and not any(_meets(stack.symbols[stack.at], low, high) for stack in stacks.others):
            return None
        self._n_new += 3
        state = GrammarState(place.stacks, False, begun)
        state.sorted = stacks
        return state

    def _sorted(self, place: GrammarState) -> SortedStacks:
        if place.sorted is None:
            self._count(len(place.stacks))
            self._n_new += len(place.stacks)
            place.sorted = SortedStacks(place.stacks)
        return place.sorted

    def _read(self, place: GrammarState, character: int) -> GrammarState | None:
        stacks = self._sorted(place)
        taken = stacks.by_character.get(character, [])
        self._count(1 + len(taken) + len(stacks.others))
        taken = taken + [s for s in stacks.others if _meets(s.symbols[s.at], character, character)]
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
            self._n_new += 3
        return stack

    def _place(self, expanded: tuple[dict[int, Stack], bool]) -> GrammarState:
        found, complete = expanded
        key = frozenset(found), complete
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = GrammarState(tuple(found.values()), complete)
            self._n_new += 6 + 3 * len(found)
        return place


def _meets(symbol: object, low: int, high: int) -> bool:
    """Whether a set of characters has one in low .. high."""
    ranges: Ranges = symbol  # type: ignore[assignment]
    if len(ranges) <= 4:
        return any(a <= high and low <= b for a, b in ranges)
    at = bisect_left(ranges, (low + 1,))  # the first that begins after ``low``
    return (at > 0 and ranges[at - 1][1] >= low) or (at < len(ranges) and ranges[at][0] <= high)


class MachineConstraint:
    """A ``Constraint``: one answer's way through a machine. A token takes some 20 us, a mask 1 to 30 ms."""

    masks_are_cheap = False

    def __init__(self, machine: GrammarMachine) -> None:
        self._machine = machine
        self._place = machine.start
        self._allowance = ANSWER_WORK
        """Steps that the answer may still take."""
        self.worked = 0

    def accept(self, token: int) -> bool:
        place, vocabulary = self._place, self._machine.vocabulary
        self.worked = 0
        if vocabulary.is_end(token):
            return place.complete and not place.begun
        piece = vocabulary.pieces[token]
        if not piece:
            return False
        try:
            following = self._machine.next(place, piece)
        finally:
            self._charge()
        if following is None:
            return False
        self._place = following
        self._allowance += TOKEN_WORK
        return True

    def _charge(self) -> None:
        """The engine has other answers to go on with."""
        self.worked = self._machine.worked
        self._allowance -= self.worked
        if self._allowance < 0:
            raise TooComplex("the grammar can be read in so many ways that following it takes too long")

    def allowed(self) -> Generator[None, None, Mask]:
        parts = self._machine.mask(self._place)
        while True:
            try:
                next(parts)
            except StopIteration as end:
                mask: Mask = end.value
                break
            finally:
                self._charge()
            yield
        if not mask.any():
            raise TooComplex("the model has no token with which its answer could go on by the grammar")
        return mask
