"""Statistics of measured values."""

from __future__ import annotations

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


def sig(value: float) -> float:
    """``value`` to four significant digits."""
    return float(f"{value:.4g}")


def rotated(items: Sequence[T], n: int) -> list[T]:
    """``items`` with the first ``n`` (of a round number) moved to the end: each round begins with another one."""
    n %= len(items)
    return [*items[n:], *items[:n]]
