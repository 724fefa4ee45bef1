"""What a byte of compressed KV must earn: one price for every chunk of every context.

Law: pure. Bits go where they take most error away per byte, whoever's chunk it is; the price is what the last byte that
the budget can pay for earns. Predicted error of a chunk at b bits: heat x sensitivity x curve(b), for K and V apart.

The least total error under a budget is greedy, since errors fall ever more slowly with bits: take the steps "from b
bits to the next" in order of gain per byte until the budget is spent. With all chunks of a service in one order that
would be millions of steps to sort at each decision. So ``PriceBook`` counts bytes of steps by their gain per byte in
quarter octaves, where a chunk is a few additions, and finding the price is going down some hundred counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from llmaas.records import ChunkKey, Precision

BITS = (2, 3, 4, 5, 6, 8)
K_ERROR = (10.0, 1.0, 0.183, 0.039, 0.0099, 0.0006)
"""Error at each of BITS relative to that at 3 bits. Measured as changes of attention output
(``kvchunks.codec.sensitivity``), 12 contexts of SmolLM2-135M; allocating by these curves costs no more than by
measuring every precision."""
V_ERROR = (3.97, 1.0, 0.243, 0.058, 0.0173, 0.001)

UNMEASURED = 5.0
"""How much more than the mean of the measured ones a chunk is expected to suffer that is not measured yet: it is the
newest, which the next queries look at most (5.5 times for K, 4.9 for V in the next 192 tokens; same contexts)."""

PER_OCTAVE = 4
"""Counts per factor of two of gain per byte: within one count, gains differ by at most 19 %."""
_SMALLEST = 2.0**-60

Size = Callable[[Precision], int]
"""Bytes of a full chunk coded at a precision."""


class Sensitivity(Protocol):
    """How much a chunk suffers at 3 bits; ``kvchunks.codec.sensitivity.ChunkTolerance`` is one."""

    @property
    def k(self) -> float: ...
    @property
    def v(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One more step of bits for K or for V of a chunk of sensitivity 1: what it costs, and what it earns per byte."""

    bits: int
    nbytes: int
    earns: float
    place: int


@dataclass(frozen=True, slots=True)
class BitSteps:
    """The smallest size of a chunk, and the steps up from there."""

    floor: int
    k: tuple[Step, ...]
    v: tuple[Step, ...]

    @staticmethod
    def of(size: Size) -> BitSteps:
        floor = size(Precision(BITS[0], BITS[0]))
        k = [size(Precision(b, BITS[0])) for b in BITS]
        v = [size(Precision(BITS[0], b)) for b in BITS]
        return BitSteps(floor, _steps(k, K_ERROR), _steps(v, V_ERROR))


def _steps(sizes: list[int], errors: tuple[float, ...]) -> tuple[Step, ...]:
    steps = []
    for i in range(1, len(BITS)):
        nbytes = sizes[i] - sizes[i - 1]
        earns = (errors[i - 1] - errors[i]) / nbytes
        steps.append(Step(BITS[i], nbytes, earns, _place(earns)))
    return tuple(steps)


def _place(value: float) -> int:
    """Where a gain is counted; the larger the gain, the larger the place."""
    return math.floor(PER_OCTAVE * math.log2(max(value, _SMALLEST)))


class ChunkDemand(NamedTuple):
    """A chunk as the book counts it: the places of heat x sensitivity; of heat alone while nothing was measured."""

    measured: bool
    k: int
    v: int


def stake(measured: Sensitivity | None, heat: float = 1.0) -> ChunkDemand:
    """``heat``: how much the chunk's error counts, relative to a chunk in use (1)."""
    if measured is None:
        return ChunkDemand(False, _place(heat), _place(heat))
    return ChunkDemand(True, _place(heat * measured.k), _place(heat * measured.v))


class Price(NamedTuple):
    """Steps at places above ``place`` are worth their bytes; of those at ``place``, the share ``share`` is."""

    place: int
    share: float


FREE = Price(-(2**31), 0.0)
"""Every step is worth its bytes."""


class PriceBook:
    """All stored chunks of a service, as counts."""

    def __init__(self, size: Size, prior: tuple[float, float]) -> None:
        """``prior``: mean sensitivities of K and V to expect before any was measured."""
        self._ladders = BitSteps.of(size)
        self._bytes: Counter[int] = Counter()
        """Bytes of the steps of measured chunks by place."""
        self._unmeasured: Counter[int] = Counter()
        """Chunks by place of their heat."""
        self._prior = prior
        self._n_learnt = 1
        self.chunks = 0

    def learn(self, measured: Sensitivity) -> None:
        """A chunk was measured: the mean of all that ever were tells what to expect of those that are not."""
        self._n_learnt += 1
        k, v = self._prior
        self._prior = (k + (measured.k - k) / self._n_learnt, v + (measured.v - v) / self._n_learnt)

    def add(self, chunk: ChunkDemand) -> None:
        self._count(chunk, 1)

    def remove(self, chunk: ChunkDemand) -> None:
        """Must be just what was added."""
        self._count(chunk, -1)

    def _count(self, chunk: ChunkDemand, n: int) -> None:
        self.chunks += n
        if chunk.measured:
            self._count_steps(self._bytes, chunk, n)
        else:
            self._unmeasured[chunk.k] += n

    def _count_steps(self, into: Counter[int], chunk: ChunkDemand, n: int) -> None:
        for place, ladder in ((chunk.k, self._ladders.k), (chunk.v, self._ladders.v)):
            for step in ladder:
                into[place + step.place] += n * step.nbytes

    def _expected(self, chunk: ChunkDemand) -> ChunkDemand:
        if chunk.measured:
            return chunk
        k, v = self._prior
        return ChunkDemand(True, chunk.k + _place(UNMEASURED * k), chunk.v + _place(UNMEASURED * v))

    def price(self, budget: int) -> Price:
        """The price at which all chunks together take ``budget`` bytes.

        Exact but for chunks at the price's own place, of which a share takes the step, drawn by their keys: the bytes
        are right in the mean, and never off by more than those of this one place. Below 2 bits nothing is to be had.
        """
        counts = self._bytes.copy()
        for heat, n in self._unmeasured.items():
            self._count_steps(counts, self._expected(ChunkDemand(False, heat, heat)), n)
        left = budget - self.chunks * self._ladders.floor
        for place, nbytes in sorted(counts.items(), reverse=True):
            if nbytes > max(left, 0):
                return Price(place, max(0.0, left / nbytes))
            left -= nbytes
        return FREE

    def choose(self, chunk: ChunkDemand, price: Price, key: ChunkKey) -> Precision:
        """The precision that the chunk is worth at this price."""
        chunk = self._expected(chunk)
        # Keys are hashes: their bytes are the draw, the same each time for one chunk.
        draws = (int.from_bytes(key[:4], "little") / 2**32, int.from_bytes(key[4:8], "little") / 2**32)
        return Precision(
            _climb(self._ladders.k, chunk.k, price, draws[0]), _climb(self._ladders.v, chunk.v, price, draws[1])
        )


def _climb(ladder: tuple[Step, ...], place: int, price: Price, draw: float) -> int:
    bits = BITS[0]
    for step in ladder:
        at = place + step.place
        if at < price.place or (at == price.place and draw >= price.share):
            break
        bits = step.bits
    return bits


def allocate(chunks: Sequence[Sensitivity | None], size: Size, budget: int) -> list[Precision]:
    """The exact greedy allocation of ``budget`` bytes to the chunks of one list; None is one not measured yet.

    What ``PriceBook`` does for a service, without rounding. Never more than ``budget``, unless 2 bits for all are.
    """
    ladders = BitSteps.of(size)
    known = [c for c in chunks if c is not None]
    new_k = UNMEASURED * sum(c.k for c in known) / len(known) if known else 1.0
    new_v = UNMEASURED * sum(c.v for c in known) / len(known) if known else 1.0
    steps = []
    for i, c in enumerate(chunks):
        k, v = (new_k, new_v) if c is None else (c.k, c.v)
        steps += [(k * step.earns, i, 0, step) for step in ladders.k]
        steps += [(v * step.earns, i, 1, step) for step in ladders.v]
    # Stable: where gains are equal (a sensitivity of 0), the steps of a ladder stay in order.
    steps.sort(key=lambda s: s[0], reverse=True)
    left = budget - len(chunks) * ladders.floor
    bits = [[BITS[0], BITS[0]] for _ in chunks]
    full: set[tuple[int, int]] = set()
    for _, i, plane, step in steps:
        if step.nbytes > left:
            full.add((i, plane))
        elif (i, plane) not in full:
            left -= step.nbytes
            bits[i][plane] = step.bits
    return [Precision(k, v) for k, v in bits]
