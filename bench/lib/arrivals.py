"""Figures from the times at which tokens arrived: pure functions of times in seconds.

An answer is the ascending list of the times at which its client had each of its tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

Arrivals = Sequence[float]


def together(answers: Sequence[Arrivals]) -> tuple[float, float]:
    """Begin and end of the time in which all are answering: from the last first token to the first last token.

    Raises ValueError if there is no such time.
    """
    begin, end = max(a[0] for a in answers), min(a[-1] for a in answers)
    if begin >= end:
        raise ValueError("the answers were never under way all at once")
    return begin, end


def rate(answers: Sequence[Arrivals], begin: float, end: float) -> float:
    """Tokens per second of all answers together, in (begin, end]."""
    return sum(begin < t <= end for a in answers for t in a) / (end - begin)


def steady_rate(arrivals: Arrivals, begin: float, end: float) -> float:
    """Tokens per second of one answer, from its first to its last token in [begin, end], however these lie in it.

    Raises ValueError for fewer than two tokens.
    """
    inside = [t for t in arrivals if begin <= t <= end]
    if len(inside) < 2 or inside[-1] <= inside[0]:
        raise ValueError(f"{len(inside)} tokens tell no rate")
    return (len(inside) - 1) / (inside[-1] - inside[0])


def gaps(answers: Sequence[Arrivals], begin: float = -math.inf, end: float = math.inf) -> list[float]:
    """What each client waited from one token to its next, in [begin, end]."""
    return [b - a for arrivals in answers for a, b in pairwise(arrivals) if begin <= a and b <= end]


def turns(answers: Sequence[Arrivals], others: int) -> list[list[int]]:
    """The tokens that each answer got between pauses. What follows its last pause is left out.

    An answer is paused when the others get ``others`` tokens between two of its own. Pauses are not found by time,
    because a machine that stutters would seem to pause answers.
    """
    found = []
    for arrivals, between in _between(answers):
        ends = [i + 1 for i, n in enumerate(between) if n >= others]
        found.append([b - a for a, b in pairwise([0, *ends])] if arrivals else [])
    return found


def gaps_and_pauses(answers: Sequence[Arrivals], others: int) -> tuple[list[float], list[float]]:
    """What clients waited from one token to the next: while they ran, and while they were paused (see ``turns``)."""
    waits = [
        (b - a, n >= others)
        for arrivals, between in _between(answers)
        for (a, b), n in zip(pairwise(arrivals), between, strict=False)  # after the last there is none
    ]
    return [wait for wait, paused in waits if not paused], [wait for wait, paused in waits if paused]


def _between(answers: Sequence[Arrivals]) -> Iterator[tuple[Arrivals, list[int]]]:
    """Each answer, and after each of its tokens, how many others got before its next."""
    everyone = sorted(t for arrivals in answers for t in arrivals)
    for arrivals in answers:
        nexts = zip(arrivals, [*arrivals[1:], math.inf], strict=False)
        yield arrivals, [bisect_left(everyone, b) - bisect_right(everyone, a) for a, b in nexts]


def percentiles_ms(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the longest, in milliseconds, to four significant digits."""
    p50, p99 = np.percentile(values, (50, 99))
    return {name: float(f"{x * 1e3:.4g}") for name, x in (("p50", p50), ("p99", p99), ("max", max(values)))}


def crossing(at: Sequence[float], rising: Sequence[float], other: Sequence[float]) -> float | None:
    """Where ``rising`` begins to be more than ``other``, interpolated between the points on log axes.

    Returns None if it never is, and ``at[0]`` if it always is. All values are above 0, and ``at`` ascends.
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
