"""Statistics of measured values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and deciles, to four significant digits."""
    return {
        "median": sig(statistics.median(values)),
        "min": sig(min(values)),
        "p10": sig(float(np.percentile(values, 10))),
        "p90": sig(float(np.percentile(values, 90))),
        "max": sig(max(values)),
        "n": len(values),
    }


def sig(value: float) -> float:
    return float(f"{value:.4g}")
