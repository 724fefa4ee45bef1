"""What one more step of bits costs a chunk in bytes, and how much error it takes away.

Law: pure. Predicted error of a chunk at b bits: heat x sensitivity x curve(b), for K and V apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llmaas.records import Precision

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
    """How much a chunk suffers at 3 bits; ``records.ChunkSensitivity`` is one."""

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
        steps.append(Step(BITS[i], nbytes, earns, place_of(earns)))
    return tuple(steps)


def place_of(value: float) -> int:
    """Where a gain is counted; the larger the gain, the larger the place."""
    return math.floor(PER_OCTAVE * math.log2(max(value, _SMALLEST)))
