"""The exact greedy allocation of bits to one list of chunks.

Law: pure. What ``price_book`` approximates for a whole service.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.policies.bit_price.steps import BITS, UNMEASURED, BitSteps, Sensitivity, Size
from llmaas.records import Precision


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
