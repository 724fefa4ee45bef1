"""Mixing: 64-bit values that depend on every bit of what they are made from, and look drawn.

Law: pure functions of integers; the same on every machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(a: int, b: int) -> int:
    """64 bits that depend on every bit of both (the finaliser of SplitMix64: Steele, Lea, Flood 2014)."""
    z = (a + (b + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def mix_many(seeds: U64, n: int) -> U64:
    """``mix(seed, 0) .. mix(seed, n-1)`` of every seed, shape (len(seeds), n)."""
    with np.errstate(over="ignore"):
        z = seeds[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
        mixed: U64 = z ^ (z >> np.uint64(31))
    return mixed
