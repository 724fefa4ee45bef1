"""Statistics of measured values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and deciles of ``values``, to four significant digits, and their number."""
    return {
        "median": sig(statistics.median(values)),
        "min": sig(min(values)),
        "p10": sig(float(np.percentile(values, 10))),
        "p90": sig(float(np.percentile(values, 90))),
        "max": sig(max(values)),
        "n": len(values),
    }


def error_of_median(values: Sequence[float]) -> float:
    """The standard error of the median: 1.2533 s / sqrt(n) (of a normal distribution's), with s estimated by the median
    distance from the median, so that one round in which something else ran does not count.

    >>> round(error_of_median([0.9, 1.0, 1.1, 5.0]), 3)
    0.093
    """
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return 1.2533 * spread / math.sqrt(len(values))


def sig(value: float) -> float:
    """``value`` to four significant digits."""
    return float(f"{value:.4g}")


def rotated(items: Sequence[T], n: int) -> list[T]:
    """``items`` with the first ``n`` (of a round number) moved to the end: each round begins with another one."""
    n %= len(items)
    return [*items[n:], *items[:n]]
