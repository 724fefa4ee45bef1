"""Costs are learned from what was seen, forgotten when it changes, and never absurd."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.linear_cost import LinearCost


def test_a_line_is_found_from_noisy_work_of_different_sizes() -> None:
    rng = random.Random(1)
    disk = LinearCost(1e-3, 1e-2)
    for _ in range(40):
        megabytes = rng.uniform(1, 30)
        disk.observe(1, megabytes, (5e-3 + 0.05 * megabytes) * rng.uniform(0.95, 1.05))
    assert disk(1, 10) == pytest.approx(0.505, rel=0.05)
    assert disk(1, 0.01) < 0.03


def test_one_observation_is_believed_at_once_and_scales_the_guess() -> None:
    disk = LinearCost(1e-3, 1e-2)
    disk.observe(1, 10, 10.0)  # a hundred times slower than guessed
    assert disk(1, 10) == pytest.approx(10.0, rel=0.1)
    assert disk(1, 20) == pytest.approx(20.0, rel=0.15)


def test_a_disk_that_becomes_slower_is_noticed_within_some_reads() -> None:
    disk = LinearCost(1e-3, 1e-2)
    for seconds in [0.1] * 50 + [1.0] * 12:
        disk.observe(1, 10, seconds)
    assert 0.6 < disk(1, 10) < 1.1


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4)), max_size=30),
    st.floats(0, 1e4),
    st.floats(0, 1e4),
)
def test_whatever_is_observed_no_cost_is_negative_and_more_work_never_takes_less(
    seen: list[tuple[float, float, float]], x: float, y: float
) -> None:
    line = LinearCost(1e-3, 1e-2)
    for one in seen:
        line.observe(*one)
    assert 0 <= line(x, y) <= line(x + 1, y + 1)
