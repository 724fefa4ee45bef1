"""What one more step of bits costs a chunk in bytes, and how much error it removes.

Law: pure. The predicted error of a chunk at b bits is heat x sensitivity x curve(b), for K and V apart. Heat says how
much an error in the chunk counts, relative to a chunk in use (1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from llmaas.frozen import frozen
from llmaas.records import Precision

BITS = (2, 3, 4, 5, 6, 8)
"""The precisions to choose from, for K and V apart."""
K_ERROR = (10.0, 1.0, 0.183, 0.039, 0.0099, 0.0006)
"""Error at each of BITS relative to the error at 3 bits. Measured as the change of attention output
(``kvchunks.codec.sensitivity``) on 12 contexts of SmolLM2-135M. Allocating by these curves costs no more error than
measuring every precision."""
V_ERROR = (3.97, 1.0, 0.243, 0.058, 0.0173, 0.001)
"""As K_ERROR, for V."""

UNMEASURED = 5.0
"""A chunk that is not measured yet is expected to be so many times as sensitive as the mean of the measured ones. It is
the newest, and the next queries look at the newest chunk most (measured: 5.5 times for K, 4.9 for V in the next 192
tokens; same contexts)."""

PER_OCTAVE = 4
"""Buckets per factor of two of gain per byte. Within one bucket, gains differ by at most 19 %."""
_SMALLEST = 2.0**-60

Size = Callable[[Precision], int]
"""Bytes of a full chunk that is coded at a precision."""


class Sensitivity(Protocol):
    """Error of a chunk at 3 bits, for K and V apart; ``records.ChunkSensitivity`` is one."""

    @property
    def k(self) -> float: ...
    @property
    def v(self) -> float: ...


@frozen
class Step:
    """One more step of bits for K or for V, up to ``bits``, of a chunk whose heat and sensitivity are 1."""

    bits: int
    nbytes: int
    """Bytes that the step costs."""
    gain: float
    """Error that it removes per byte."""
    bucket: int
    """``bucket_of(gain)``"""


@frozen
class BitSteps:
    """The smallest size of a chunk in bytes, and the steps up from there for K and for V."""

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
        gain = (errors[i - 1] - errors[i]) / nbytes
        steps.append(Step(BITS[i], nbytes, gain, bucket_of(gain)))
    return tuple(steps)


def bucket_of(gain: float) -> int:
    """The bucket that counts steps of this gain: PER_OCTAVE for each factor of two, larger for larger gains.

    Factors become sums, so the bucket of a chunk's step is about the chunk's bucket plus the step's.

    >>> bucket_of(1.0), bucket_of(2.0), bucket_of(0.5)
    (0, 4, -4)
    """
    return math.floor(PER_OCTAVE * math.log2(max(gain, _SMALLEST)))
