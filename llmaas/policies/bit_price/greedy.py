"""The exact greedy allocation of bits to one list of chunks.

Law: pure. ``price_book`` does the same for a whole service, with gains rounded to buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.policies.bit_price.steps import BITS, UNMEASURED, BitSteps, Sensitivity, Size, Step
from llmaas.records import Precision


def allocate(chunks: Sequence[Sensitivity | None], size: Size, budget: int) -> list[Precision]:
    """The precision of each chunk so that the predicted error is least within ``budget`` bytes.

    A chunk that is not measured yet is None. The sizes never exceed ``budget``, unless 2 bits for all of them do.

    >>> from llmaas.records import ChunkSensitivity
    >>> calm, touchy = ChunkSensitivity(1e-5, 1e-5, 0, 0, 0), ChunkSensitivity(1e-2, 1e-2, 0, 0, 0)
    >>> allocate([calm, touchy], size=lambda p: 8 * (p.k + p.v), budget=2 * 8 * (3 + 3))
    [Precision(k=2, v=2), Precision(k=4, v=4)]
    """
    steps = BitSteps.of(size)
    gains = _gains(_expected(chunks), steps)
    left = budget - len(chunks) * steps.floor
    bits = [[BITS[0], BITS[0]] for _ in chunks]
    full: set[tuple[int, int]] = set()
    """Planes (chunk, 0 for K and 1 for V) of which a step did not fit."""
    for _, i, plane, step in gains:
        if step.nbytes > left:
            full.add((i, plane))
        elif (i, plane) not in full:
            left -= step.nbytes
            bits[i][plane] = step.bits
    return [Precision(k, v) for k, v in bits]


def _expected(chunks: Sequence[Sensitivity | None]) -> list[tuple[float, float]]:
    """Sensitivities of K and V, measured or predicted from the mean of those that were measured."""
    known = [c for c in chunks if c is not None]
    new_k = UNMEASURED * sum(c.k for c in known) / len(known) if known else 1.0
    new_v = UNMEASURED * sum(c.v for c in known) / len(known) if known else 1.0
    return [(new_k, new_v) if c is None else (c.k, c.v) for c in chunks]


def _gains(sensitivities: list[tuple[float, float]], steps: BitSteps) -> list[tuple[float, int, int, Step]]:
    """All steps of all chunks as (gain per byte, chunk, 0 for K and 1 for V, step), the greatest gain first."""
    found = []
    for i, (k, v) in enumerate(sensitivities):
        found += [(k * step.gain, i, 0, step) for step in steps.k]
        found += [(v * step.gain, i, 1, step) for step in steps.v]
    # The sort is stable: where gains are equal (a sensitivity of 0), the steps of a plane stay in order.
    found.sort(key=lambda gain: gain[0], reverse=True)
    return found
