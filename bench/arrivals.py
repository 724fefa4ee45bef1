"""Figures from when tokens arrived: pure functions, all in seconds.

An answer is the list of the times at which its client had each of its tokens, ascending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Arrivals = Sequence[float]


def together(answers: Sequence[Arrivals]) -> tuple[float, float]:
    """The time in which all are answering: from the last first token to the first last token."""
    begin, end = max(a[0] for a in answers), min(a[-1] for a in answers)
    if begin >= end:
        raise ValueError("the answers were never under way all at once")
    return begin, end


def rate(answers: Sequence[Arrivals], begin: float, end: float) -> float:
    """Tokens per second of all of them, in (begin, end]."""
    return sum(begin < t <= end for a in answers for t in a) / (end - begin)


def steady_rate(arrivals: Arrivals, begin: float, end: float) -> float:
    """Tokens per second of one answer, from its first to its last token in [begin, end]: not a fraction of one lost.

    Raises ValueError for fewer than two tokens.
    """
    inside = [t for t in arrivals if begin <= t <= end]
    if len(inside) < 2 or inside[-1] <= inside[0]:
        raise ValueError(f"{len(inside)} tokens tell no rate")
    return (len(inside) - 1) / (inside[-1] - inside[0])


def gaps(answers: Sequence[Arrivals], begin: float = -math.inf, end: float = math.inf) -> list[float]:
    """What each client waited from one token to its next, in [begin, end]."""
    return [b - a for arrivals in answers for a, b in pairwise(arrivals) if begin <= a and b <= end]


def turns(arrivals: Arrivals, pause: float) -> list[int]:
    """Tokens of each turn: an answer's tokens between two pauses of at least ``pause``. The last may be unfinished."""
    found = [1] if arrivals else []
    for gap in gaps([arrivals]):
        if gap >= pause:
            found.append(1)
        else:
            found[-1] += 1
    return found


def whole_turns(arrivals: Arrivals, pause: float, end: float) -> list[int]:
    """The turns that were over at ``end``."""
    found = turns(arrivals, pause)
    return found[:-1] if found and end - arrivals[-1] < pause else found


def percentiles_ms(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the longest, in milliseconds, to four significant digits."""
    p50, p99 = np.percentile(values, (50, 99))
    return {name: float(f"{x * 1e3:.4g}") for name, x in (("p50", p50), ("p99", p99), ("max", max(values)))}


def crossing(at: Sequence[float], rising: Sequence[float], other: Sequence[float]) -> float | None:
    """Where ``rising`` begins to cost more than ``other``: interpolated between the points on log axes.

    None if it does nowhere; ``at[0]`` if it does everywhere. All values are above 0, ``at`` ascends.
    """
    over = [math.log(a / b) for a, b in zip(rising, other, strict=True)]
    below = [i for i, x in enumerate(over) if x <= 0]
    if not below:
        return at[0]
    last = below[-1]
    if last == len(at) - 1:
        return None
    part = -over[last] / (over[last + 1] - over[last])
    return math.exp(math.log(at[last]) + part * math.log(at[last + 1] / at[last]))
