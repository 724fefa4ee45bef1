"""The price of a byte: one marginal gain for every chunk of every context, so that the total error is least.

Law: pure. Bits go where they remove the most error per byte, in whichever context. The price is the gain per byte of
the last step of bits that the budget pays for (the Lagrange multiplier of the budget).

The least total error under a budget is found greedily, because errors fall ever more slowly with bits: take the steps
"from b bits to the next" in descending order of gain per byte until the budget is spent. With all chunks of a service
in one order, that would be millions of steps to sort at each decision. So ``PriceBook`` keeps a histogram: bytes of
steps by gain per byte, four buckets an octave. Adding a chunk is then a few additions, and finding the price is a walk
down a few hundred buckets.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from llmaas.policies.bit_price.several import BitCurve
from llmaas.policies.bit_price.steps import BITS, UNMEASURED, BitSteps, Sensitivity, Size, Step, bucket_of
from llmaas.records import ChunkKey, Precision


class ChunkDemand(NamedTuple):
    """A chunk as the book counts it: buckets of heat x sensitivity, or of heat alone if it was not measured."""

    measured: bool
    k: int
    v: int


def demand(measured: Sensitivity | None, heat: float = 1.0) -> ChunkDemand:
    """The demand of a chunk. ``measured``: None if its sensitivity is not known yet. ``heat``: see ``steps``."""
    if measured is None:
        return ChunkDemand(False, bucket_of(heat), bucket_of(heat))
    return ChunkDemand(True, bucket_of(heat * measured.k), bucket_of(heat * measured.v))


class Price(NamedTuple):
    """Steps in buckets above ``bucket`` are worth their bytes; of those in ``bucket``, the fraction ``share`` is."""

    bucket: int
    share: float


FREE = Price(-(2**31), 0.0)
"""Every step is worth its bytes."""


class PriceBook:
    """All stored chunks of a service, as a histogram.

    >>> book = PriceBook(size=lambda p: 8 * (p.k + p.v), prior=(1e-4, 1e-4))
    >>> hot, cold = demand(None, heat=1.0), demand(None, heat=1 / 64)
    >>> book.add(hot)
    >>> book.add(cold)
    >>> price = book.price(budget=2 * 8 * (4 + 4))  # 4 bits in the mean
    >>> key = ChunkKey(bytes(16))
    >>> book.choose(hot, price, key), book.choose(cold, price, key)
    (Precision(k=5, v=5), Precision(k=3, v=3))
    """

    def __init__(self, size: Size, prior: tuple[float, float]) -> None:
        """``prior``: the mean sensitivities of K and V to expect before any chunk was measured."""
        self._steps = BitSteps.of(size)
        self._bytes: Counter[int] = Counter()
        """Bytes of the steps of measured chunks, by bucket."""
        self._unmeasured: Counter[int] = Counter()
        """Number of chunks that were not measured, by bucket of their heat."""
        self._prior = prior
        self._n_learnt = 1
        self.chunks = 0

    def learn(self, measured: Sensitivity) -> None:
        """A chunk was measured. The mean of all measurements predicts the chunks that are not measured yet."""
        self._n_learnt += 1
        k, v = self._prior
        self._prior = (k + (measured.k - k) / self._n_learnt, v + (measured.v - v) / self._n_learnt)

    def add(self, chunk: ChunkDemand) -> None:
        self._count(chunk, 1)

    def remove(self, chunk: ChunkDemand) -> None:
        """``chunk`` must be equal to what was added."""
        self._count(chunk, -1)

    def _count(self, chunk: ChunkDemand, n: int) -> None:
        self.chunks += n
        if chunk.measured:
            self._count_steps(self._bytes, chunk, n)
        else:
            _add(self._unmeasured, chunk.k, n)

    def _count_steps(self, into: Counter[int], chunk: ChunkDemand, n: int) -> None:
        for bucket, steps in ((chunk.k, self._steps.k), (chunk.v, self._steps.v)):
            for step in steps:
                _add(into, bucket + step.bucket, n * step.nbytes)

    def _expected(self, chunk: ChunkDemand) -> ChunkDemand:
        """The demand, with the expected sensitivity in place of one that was not measured."""
        if chunk.measured:
            return chunk
        k, v = self._prior
        return ChunkDemand(True, chunk.k + bucket_of(UNMEASURED * k), chunk.v + bucket_of(UNMEASURED * v))

    def price(self, budget: int) -> Price:
        """The price at which all chunks together take ``budget`` bytes.

        Exact except for steps in the price's own bucket: a fraction of them is taken, drawn by the keys of their
        chunks. So the bytes are right in the mean, and never wrong by more than the bytes of this one bucket. A budget
        below 2 bits for every chunk cannot be kept.
        """
        counts = self._all_bytes()
        left = budget - self.chunks * self._steps.floor
        for bucket, nbytes in sorted(counts.items(), reverse=True):
            if nbytes > max(left, 0):
                return Price(bucket, max(0.0, left / nbytes))
            left -= nbytes
        return FREE

    def curve(self, chunk_values: int) -> BitCurve:
        """What all chunks would do with bytes; ``chunk_values``: how many values one has."""
        steps = {bucket: nbytes for bucket, nbytes in self._all_bytes().items() if nbytes > 0}
        return BitCurve(self.chunks * chunk_values, self.chunks * self._steps.floor, steps)

    def _all_bytes(self) -> Counter[int]:
        """Bytes of the steps of all chunks, by bucket."""
        counts = self._bytes.copy()
        for heat, n in self._unmeasured.items():
            self._count_steps(counts, self._expected(ChunkDemand(False, heat, heat)), n)
        return counts

    def choose(self, chunk: ChunkDemand, price: Price, key: ChunkKey) -> Precision:
        """The precision that the chunk gets at this price. The same key gets the same draw each time."""
        chunk = self._expected(chunk)
        # Keys are hashes, so their bytes serve as uniform draws.
        draw_k, draw_v = int.from_bytes(key[:4], "little") / 2**32, int.from_bytes(key[4:8], "little") / 2**32
        return Precision(_bits(self._steps.k, chunk.k, price, draw_k), _bits(self._steps.v, chunk.v, price, draw_v))


def _add(to: Counter[int], bucket: int, n: int) -> None:
    """Count ``n`` more; a bucket with nothing left in it is dropped, so that a book never outgrows its chunks."""
    to[bucket] += n
    if not to[bucket]:
        del to[bucket]


def _bits(steps: tuple[Step, ...], bucket: int, price: Price, draw: float) -> int:
    """Bits up to the last of the steps that are worth their bytes; ``draw`` (0 .. 1) decides in the price's bucket."""
    bits = BITS[0]
    for step in steps:
        at = bucket + step.bucket
        if at < price.bucket or (at == price.bucket and draw >= price.share):
            break
        bits = step.bits
    return bits
