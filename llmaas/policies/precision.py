"""F3. With how many bits a chunk is coded, for choices that need no price (``policies.price`` has the one that does).

Law: a chunk is coded once, from values the model computed. The last, partial chunk of a context will grow and be
coded again, so it stays lossless until it is full: its decoded form is then the computed form, and nothing
lossy is ever coded a second time. K and V never get fewer than 2 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

from llmaas.policies.price import Size
from llmaas.records import CHUNK_TOKENS, LOSSLESS, Precision


class PrecisionPolicy(Protocol):
    def choose(self, index: int, n_tokens: int) -> Precision:
        """Precision for chunk ``index`` of a context, which holds ``n_tokens`` tokens."""


class Uniform:
    """Every full chunk at the same precision."""

    def __init__(self, precision: Precision) -> None:
        self._precision = precision

    def choose(self, index: int, n_tokens: int) -> Precision:
        return self._precision if n_tokens == CHUNK_TOKENS else LOSSLESS


PRECISION: dict[str, Callable[[Precision], PrecisionPolicy]] = {"uniform": Uniform}

_SPLITS = {
    2.0: Precision(2, 2),
    2.5: Precision(2, 3),
    3.0: Precision(3, 3),
    3.5: Precision(3, 4),
    4.0: Precision(4, 4),
    4.5: Precision(4, 5),
    5.0: Precision(5, 5),
    5.5: Precision(5, 6),
    6.0: Precision(6, 6),
    7.0: Precision(6, 8),
    8.0: Precision(8, 8),
}
"""K and V by their mean; the odd bit goes to V. Mean KLD on SmolLM2-135M, 12 contexts: K2 V3 .0169, K3 V2 .0180; K3 V4
.0041, K4 V3 .0048; K4 V5 .0025, K5 V4 .0026."""


def best_split(bits: float) -> Precision:
    """The best uniform precision of at most ``bits`` nominal bits, the mean of K and V. Raises ValueError below 2."""
    if bits < 2:
        raise ValueError(f"a chunk needs at least 2 bits, not {bits}")
    return _SPLITS[max(b for b in _SPLITS if b <= bits)]


def llms(densities: Sequence[float], size: Size, budget: int) -> list[Precision]:
    """The rule of LLMS (arXiv 2403.11805, section 3.2), as a baseline: 8, 4 or 2 bits by rank of attention density D.

    Thresholds are those that maximise sum(D / ratio), ratio = bits / 8, for chunks of ``size`` in ``budget`` bytes (the
    paper's half of INT8 is n x size(8/8) / 2). Never more than ``budget``, unless 2 bits for all are.

    That objective is degenerate: a chunk adds the more to it the fewer bits it gets, and it is convex in how many get
    8. So the best is always at an end: as many as can be at 4 bits, or some at 8 and the rest at 2.
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
        # As few at 2 bits as the budget allows: the constraint of the paper is an equality.
        n_middle = max(0, min(n - n_high, left // (middle - low)))
        top, upper = below[n_high], below[n_high + n_middle]
        best = max(best, (top + 2 * (upper - top) + 4 * (below[n] - upper), n_high, n_middle))
    _, n_high, n_middle = best
    chosen = [Precision(2, 2)] * n
    for rank, i in enumerate(order[: n_high + n_middle]):
        chosen[i] = Precision(8, 8) if rank < n_high else Precision(4, 4)
    return chosen
