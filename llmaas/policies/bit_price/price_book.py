"""What a byte of compressed KV must earn: one price for every chunk of every context.

Law: pure. Bits go where they take most error away per byte, whoever's chunk it is; the price is what the last byte that
the budget can pay for earns. Predicted error of a chunk at b bits: heat x sensitivity x curve(b), for K and V apart.

The least total error under a budget is greedy, since errors fall ever more slowly with bits: take the steps "from b
bits to the next" in order of gain per byte until the budget is spent. With all chunks of a service in one order that
would be millions of steps to sort at each decision. So ``PriceBook`` counts bytes of steps by their gain per byte in
quarter octaves, where a chunk is a few additions, and finding the price is going down some hundred counts.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from llmaas.policies.bit_price.steps import BITS, UNMEASURED, BitSteps, Sensitivity, Size, Step, place_of
from llmaas.records import ChunkKey, Precision


class ChunkDemand(NamedTuple):
    """A chunk as the book counts it: the places of heat x sensitivity; of heat alone while nothing was measured."""

    measured: bool
    k: int
    v: int


def demand(measured: Sensitivity | None, heat: float = 1.0) -> ChunkDemand:
    """``heat``: how much the chunk's error counts, relative to a chunk in use (1)."""
    if measured is None:
        return ChunkDemand(False, place_of(heat), place_of(heat))
    return ChunkDemand(True, place_of(heat * measured.k), place_of(heat * measured.v))


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
        return ChunkDemand(True, chunk.k + place_of(UNMEASURED * k), chunk.v + place_of(UNMEASURED * v))

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
