"""Counters, gauges and histograms of one service, and a plain snapshot of them.

Law: no globals: whoever measures is given a ``Registry``. Every instrument may be used from any
thread and takes bounded memory however long the service runs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_PER_OCTAVE = 8
"""Buckets per doubling: a quantile is off by at most 2**(1/16) - 1 = 4.4 %."""
_SMALLEST, _LARGEST = 1e-6, 1e15


class Counter:
    """Only grows."""

    __slots__ = ("_lock", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0

    def add(self, n: int = 1) -> None:
        if n < 0:
            raise ValueError(f"a counter only grows: {n}")
        with self._lock:
            self._value += n

    @property
    def value(self) -> int:
        return self._value


class Gauge:
    """A level that goes up and down."""

    __slots__ = ("_lock", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0.0

    def set(self, value: float) -> None:
        with self._lock:
            self._value = value

    def add(self, delta: float) -> None:
        with self._lock:
            self._value += delta

    @property
    def value(self) -> float:
        return self._value


class Histogram:
    """Values >= 0 in buckets of equal ratio.

    A reservoir was rejected: its p99 is a matter of luck, and it forgets the rare slow case that the
    p99 is asked for. At most ~560 buckets exist, and only those that were hit.
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

    def quantile(self, q: float) -> float:
        """The value below which a share ``q`` of the observations lies, to 4.4 %; 0 if there are none."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile is in [0, 1], not {q}")
        with self._lock:
            return self._quantile(q)

    def _quantile(self, q: float) -> float:
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

    def snapshot(self) -> dict[str, float]:
        with self._lock:
            return {
                "count": self._count,
                "sum": self._sum,
                "min": self._min if self._count else 0.0,
                "p50": self._quantile(0.50),
                "p99": self._quantile(0.99),
                "max": self._max,
            }


_I = TypeVar("_I", Counter, Gauge, Histogram)


class Registry:
    """Instruments by name; a name asked for twice is the same instrument."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str) -> Counter:
        return self._get(name, Counter)

    def gauge(self, name: str) -> Gauge:
        return self._get(name, Gauge)

    def histogram(self, name: str) -> Histogram:
        return self._get(name, Histogram)

    def _get(self, name: str, kind: type[_I]) -> _I:
        with self._lock:
            found = self._found.setdefault(name, kind())
        if not isinstance(found, kind):
            raise ValueError(f"{name} is a {type(found).__name__}, not a {kind.__name__}")
        return found

    @contextmanager
    def timed(self, name: str, now: Callable[[], float]) -> Iterator[None]:
        """Observe in histogram ``name`` how many milliseconds the block took by the clock ``now`` (seconds)."""
        start = now()
        try:
            yield
        finally:
            self.histogram(name).observe((now() - start) * 1e3)

    def snapshot(self) -> dict[str, int | float | dict[str, float]]:
        """Every instrument: a number, or for a histogram count, sum, min, p50, p99, max. JSON-ready, sorted by name."""
        with self._lock:
            items = sorted(self._found.items())
        return {name: i.snapshot() if isinstance(i, Histogram) else i.value for name, i in items}
