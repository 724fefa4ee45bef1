"""Instruments: what they count, how near their quantiles are, and that threads do not lose counts."""

from __future__ import annotations

import json
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.metrics import Histogram, Registry


def test_a_snapshot_is_plain_sorted_and_json_ready() -> None:
    registry = Registry()
    registry.counter("b.misses").add(2)
    registry.counter("a.hits").add(3)
    registry.histogram("c.ms").observe(4.0)
    snapshot = registry.snapshot()
    assert json.loads(json.dumps(snapshot)) == snapshot
    assert list(snapshot) == ["a.hits", "b.misses", "c.ms"]
    assert (snapshot["a.hits"], snapshot["b.misses"]) == (3, 2)
    assert snapshot["c.ms"] == {"count": 1, "sum": 4.0, "min": 4.0, "p50": 4.0, "p99": 4.0, "max": 4.0}


def test_a_name_is_one_instrument_of_one_kind() -> None:
    registry = Registry()
    assert registry.counter("x") is registry.counter("x")
    with pytest.raises(ValueError, match="x is a Counter, not a Histogram"):
        registry.histogram("x")


def test_two_registries_share_nothing() -> None:
    one, two = Registry(), Registry()
    one.counter("x").add()
    assert two.counter("x").value == 0


def test_a_counter_only_grows() -> None:
    with pytest.raises(ValueError, match="only grows"):
        Registry().counter("x").add(-1)


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=200))
def test_a_quantile_is_within_its_promised_error(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    for name, q in (("p50", 0.50), ("p99", 0.99)):
        exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
        assert histogram.snapshot()[name] == pytest.approx(exact, rel=0.045)


def test_zero_is_a_measurement_and_nothing_is_zero() -> None:
    histogram = Histogram()
    assert (histogram.snapshot()["p50"], histogram.snapshot()["min"]) == (0.0, 0.0)
    histogram.observe(0.0)
    assert (histogram.snapshot()["p50"], histogram.snapshot()["count"]) == (0.0, 1)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_measurement_is_refused(value: float) -> None:
    histogram = Histogram()
    with pytest.raises(ValueError, match="not a measurement"):
        histogram.observe(value)
    assert histogram.snapshot()["count"] == 0


def test_threads_lose_no_counts() -> None:
    registry = Registry()

    def work() -> None:
        for i in range(2000):
            registry.counter("n").add()
            registry.histogram("h").observe(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.counter("n").value == 8000
    assert registry.histogram("h").snapshot()["count"] == 8000


@given(st.lists(st.floats(1e-5, 1e9), min_size=1, max_size=50))
def test_octaves_are_cumulative_counts_at_powers_of_two(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    found = histogram.octaves()
    assert list(found.values()) == sorted(found.values()) and list(found.values())[-1] == len(values)
    for bound, n in found.items():
        assert n == sum(value < float(bound) * (1 + 1e-9) for value in values) or n == sum(
            value < float(bound) for value in values
        )
