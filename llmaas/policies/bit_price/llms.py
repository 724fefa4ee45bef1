"""The rule of LLMS for allocating bits (arXiv 2403.11805, section 3.2), a baseline for benches.

Law: pure. K and V get 8, 4 or 2 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from llmaas.policies.bit_price.steps import Size
from llmaas.records import Precision


def llms(densities: Sequence[float], size: Size, budget: int) -> list[Precision]:
    """The precision of each chunk: 8, 4 or 2 bits by the rank of its attention density D (eq. 1 of the paper).

    The two thresholds maximise sum(D / ratio), ratio = bits / 8, for chunks of ``size`` in ``budget`` bytes (the
    paper's half of INT8 is n x size(8/8) / 2). The sizes never exceed ``budget``, unless 2 bits for all of them do.

    This objective is degenerate: a chunk adds more to it the fewer bits it has, and it is convex in the number of
    chunks at 8 bits. So the optimum is always at an end: as many chunks at 4 bits as the budget allows, or some at 8
    and the rest at 2.
    """
    n = len(densities)
    order = sorted(range(n), key=lambda i: densities[i], reverse=True)
    below = [0.0, *accumulate(densities[i] for i in order)]
    low, middle, high = (size(Precision(b, b)) for b in (2, 4, 8))
    best = (-1.0, 0, 0)
    for n_high in range(n + 1):
        left = budget - n_high * high - (n - n_high) * low
        if left < 0 and n_high:
            break
        # As few chunks at 2 bits as the budget allows: the paper's constraint is an equality.
        n_middle = max(0, min(n - n_high, left // (middle - low)))
        top, upper = below[n_high], below[n_high + n_middle]
        best = max(best, (top + 2 * (upper - top) + 4 * (below[n] - upper), n_high, n_middle))
    _, n_high, n_middle = best
    chosen = [Precision(2, 2)] * n
    for rank, i in enumerate(order[: n_high + n_middle]):
        chosen[i] = Precision(8, 8) if rank < n_high else Precision(4, 4)
    return chosen
