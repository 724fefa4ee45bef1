"""Instruments: what they count, how near their quantiles are, and that threads do not lose counts."""

from __future__ import annotations

import json
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.clock import ManualClock, RealClock
from llmaas.metrics import Histogram, Registry


def test_a_snapshot_is_plain_sorted_and_json_ready() -> None:
    registry = Registry()
    registry.gauge("b.level").set(2.5)
    registry.counter("a.hits").add(3)
    registry.histogram("c.ms").observe(4.0)
    snapshot = registry.snapshot()
    assert json.loads(json.dumps(snapshot)) == snapshot
    assert list(snapshot) == ["a.hits", "b.level", "c.ms"]
    assert (snapshot["a.hits"], snapshot["b.level"]) == (3, 2.5)
    assert snapshot["c.ms"] == {"count": 1, "sum": 4.0, "min": 4.0, "p50": 4.0, "p99": 4.0, "max": 4.0}


def test_a_name_is_one_instrument_of_one_kind() -> None:
    registry = Registry()
    assert registry.counter("x") is registry.counter("x")
    with pytest.raises(ValueError, match="x is a Counter, not a Gauge"):
        registry.gauge("x")


def test_two_registries_share_nothing() -> None:
    one, two = Registry(), Registry()
    one.counter("x").add()
    assert two.counter("x").value == 0


def test_a_counter_only_grows_and_a_gauge_moves() -> None:
    registry = Registry()
    with pytest.raises(ValueError, match="only grows"):
        registry.counter("x").add(-1)
    registry.gauge("g").add(5)
    registry.gauge("g").add(-7)
    assert registry.gauge("g").value == -2


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_within_its_promised_error(values: list[float], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.045)


def test_zero_is_a_measurement_and_nothing_is_zero() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0.0
    assert histogram.snapshot()["min"] == 0.0
    histogram.observe(0.0)
    assert histogram.quantile(0.5) == 0.0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_measurement_is_refused(value: float) -> None:
    histogram = Histogram()
    with pytest.raises(ValueError, match="not a measurement"):
        histogram.observe(value)
    assert histogram.snapshot()["count"] == 0


def test_a_quantile_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="quantile"):
        Histogram().quantile(99)


def test_threads_lose_no_counts() -> None:
    registry = Registry()

    def work() -> None:
        for i in range(2000):
            registry.counter("n").add()
            registry.gauge("g").add(1)
            registry.histogram("h").observe(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (registry.counter("n").value, registry.gauge("g").value) == (8000, 8000)
    assert registry.histogram("h").snapshot()["count"] == 8000


def test_timed_observes_milliseconds_of_the_given_clock_even_after_a_failure() -> None:
    clock, registry = ManualClock(), Registry()
    with pytest.raises(RuntimeError), registry.timed("t.ms", clock.now):
        clock.advance(0.25)
        raise RuntimeError
    assert registry.histogram("t.ms").snapshot()["sum"] == pytest.approx(250.0)


def test_a_manual_clock_moves_only_forward_and_only_when_told() -> None:
    clock = ManualClock(now=5.0, wall=100.0)
    assert (clock.now(), clock.wall()) == (5.0, 100.0)
    clock.advance(1.5)
    assert (clock.now(), clock.wall()) == (6.5, 101.5)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_the_real_clock_does_not_run_backwards() -> None:
    clock = RealClock()
    readings = [clock.now() for _ in range(1000)]
    assert readings == sorted(readings)
    assert clock.wall() > 1_700_000_000
