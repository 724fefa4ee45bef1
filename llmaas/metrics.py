"""Counters and histograms of one service, and a plain snapshot of them.

Law: there are no global metrics; a part that measures is given a ``Registry``. Every instrument may be used from any
thread, and its memory is bounded however long the service runs.
"""

from __future__ import annotations

import math
import threading
from typing import TypeVar

_PER_OCTAVE = 8
"""Buckets per doubling of the value: a quantile is off by at most 2**(1/16) - 1 = 4.4 %."""
_SMALLEST, _LARGEST = 1e-6, 1e15


class Counter:
    """A number that only grows."""

    __slots__ = ("_lock", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0

    def add(self, n: int = 1) -> None:
        """Raises ValueError if ``n`` is negative."""
        if n < 0:
            raise ValueError(f"a counter only grows: {n}")
        with self._lock:
            self._value += n

    @property
    def value(self) -> int:
        return self._value


class Histogram:
    """Counts of values >= 0 in buckets of equal ratio.

    A reservoir of samples was rejected: its p99 depends on luck, and it forgets the rare slow case that a p99 is asked
    for. There are at most about 560 buckets, and only those that were hit exist.
    """

    __slots__ = ("_buckets", "_count", "_lock", "_max", "_min", "_sum")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[int, int] = {}
        self._count = 0
        self._sum = 0.0
        self._min = math.inf
        self._max = 0.0

    def observe(self, value: float) -> None:
        """Raises ValueError for a negative or non-finite value."""
        if not (value >= 0.0 and math.isfinite(value)):
            raise ValueError(f"not a measurement: {value}")
        bucket = math.floor(math.log2(min(max(value, _SMALLEST), _LARGEST)) * _PER_OCTAVE)
        with self._lock:
            self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
            self._count += 1
            self._sum += value
            self._min = min(self._min, value)
            self._max = max(self._max, value)

    def octaves(self) -> dict[str, int]:
        """How many values there were below each power of two, from the first that has any to the first that has all.

        The powers are written as numbers: monitors want such cumulative counts, at bounds that never change.
        """
        with self._lock:
            counts = sorted(self._buckets.items())
        found: dict[str, int] = {}
        seen = 0
        for bucket, n in counts:
            seen += n
            found[f"{2.0 ** (bucket // _PER_OCTAVE + 1):g}"] = seen
        return found

    def snapshot(self) -> dict[str, float]:
        """Count, sum, min, p50, p99 and max. The quantiles are accurate to 4.4 %; without observations all are 0."""
        with self._lock:
            return {
                "count": self._count,
                "sum": self._sum,
                "min": self._min if self._count else 0.0,
                "p50": self._quantile(0.50),
                "p99": self._quantile(0.99),
                "max": self._max,
            }

    def _quantile(self, q: float) -> float:
        """The value below which a share ``q`` of the observations lies."""
        if not self._count:
            return 0.0
        rank = max(1, math.ceil(q * self._count))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                middle = math.pow(2.0, (bucket + 0.5) / _PER_OCTAVE)
                return min(max(middle, self._min), self._max)
        raise AssertionError("the buckets hold every observation")


_I = TypeVar("_I", Counter, Histogram)


class Registry:
    """Instruments by name. The same name gives the same instrument."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Counter | Histogram] = {}

    def counter(self, name: str) -> Counter:
        """Raises ValueError if ``name`` is a histogram."""
        return self._get(name, Counter)

    def histogram(self, name: str) -> Histogram:
        """Raises ValueError if ``name`` is a counter."""
        return self._get(name, Histogram)

    def _get(self, name: str, kind: type[_I]) -> _I:
        with self._lock:
            found = self._found.setdefault(name, kind())
        if not isinstance(found, kind):
            raise ValueError(f"{name} is a {type(found).__name__}, not a {kind.__name__}")
        return found

    def octaves(self) -> dict[str, dict[str, int]]:
        """``Histogram.octaves`` of every histogram that has values."""
        with self._lock:
            items = sorted(self._found.items())
        return {name: found for name, i in items if isinstance(i, Histogram) and (found := i.octaves())}

    def snapshot(self) -> dict[str, int | dict[str, float]]:
        """Every instrument, sorted by name, ready for JSON: a counter as a number, a histogram as its snapshot."""
        with self._lock:
            items = sorted(self._found.items())
        return {name: i.snapshot() if isinstance(i, Histogram) else i.value for name, i in items}
