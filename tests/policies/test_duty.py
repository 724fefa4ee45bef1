"""The duty under series of readings: down in a few steps, back slowly, still in between."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.duty import FLOOR, DutyPolicy, ThermalReading


def live(policy: DutyPolicy, seconds: int, read: Callable[[int, float], ThermalReading], start: int = 0) -> list[float]:
    """The duty every two seconds. ``read(second, duty)``."""
    return [policy.on_reading(read(t, policy.duty), float(t)) for t in range(start, start + seconds, 2)]


def hot(celsius: float) -> ThermalReading:
    return ThermalReading(temperature=celsius, limit=95.0, zone="cpu")


def test_a_cool_machine_on_the_mains_computes_all_the_time() -> None:
    readings = (
        ThermalReading(),
        hot(60.0),
        ThermalReading(speed=0.95),
        ThermalReading(battery=0.05),
        ThermalReading(battery=0.8, discharging=True),
    )
    for reading in readings:
        policy = DutyPolicy()
        assert set(live(policy, 60, lambda t, duty, reading=reading: reading)) == {1.0}  # type: ignore[misc]
        assert policy.why == ""


def test_a_machine_at_its_limit_computes_a_fifth_of_the_time_within_ten_seconds_and_comes_back_slowly() -> None:
    policy = DutyPolicy()
    down = live(policy, 10, lambda t, duty: hot(97.0))
    assert down == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    assert policy.why == "heat"
    up = live(policy, 60, lambda t, duty: hot(70.0), start=10)
    assert up[0] == pytest.approx(0.2), "not before things have been well for ten seconds"
    assert all(0.0 <= b - a <= 0.05 + 1e-9 for a, b in pairwise(up))
    assert up[-1] == 1.0 and policy.why == ""


def test_a_low_battery_counts_only_while_it_is_emptied() -> None:
    low = ThermalReading(battery=0.08, discharging=True)
    policy = DutyPolicy()
    assert live(policy, 20, lambda t, duty: low)[-1] == pytest.approx(FLOOR)
    assert policy.why == "battery"
    assert live(policy, 60, lambda t, duty: ThermalReading(battery=0.08), start=20)[-1] == 1.0


def test_a_cpu_that_is_held_back_is_not_given_more_than_it_may_do() -> None:
    policy = DutyPolicy()
    assert live(policy, 20, lambda t, duty: ThermalReading(speed=0.5))[-1] == pytest.approx(0.5)
    assert policy.why == "throttled"


def test_a_machine_that_warms_with_the_duty_settles_instead_of_oscillating() -> None:
    """A first-order model: 50 degrees at rest, 105 at full duty, half way in twenty seconds."""
    policy, celsius, found = DutyPolicy(), 50.0, []
    for t in range(0, 1200, 2):
        celsius += (50.0 + 55.0 * policy.duty - celsius) * 0.07
        found.append(policy.on_reading(hot(celsius), float(t)))
    late = found[len(found) // 2 :]
    assert celsius < 95.0
    assert max(late) - min(late) <= 0.25
    changes = sum(a != b for a, b in pairwise(late))
    assert changes <= 30


READINGS = st.builds(
    ThermalReading,
    temperature=st.none() | st.floats(-40, 150),
    limit=st.none() | st.floats(20, 150),
    speed=st.none() | st.floats(0, 1),
    battery=st.none() | st.floats(0, 1),
    discharging=st.booleans(),
)


@given(st.lists(st.tuples(READINGS, st.floats(0.0, 100.0)), max_size=60))
def test_the_duty_moves_by_small_steps_between_its_floor_and_one(series: list[tuple[ThermalReading, float]]) -> None:
    policy, now = DutyPolicy(), 0.0
    for reading, passed in series:
        before, now = policy.duty, now + passed
        after = policy.on_reading(reading, now)
        assert FLOOR <= after <= 1.0
        assert -0.2 - 1e-9 <= after - before <= 0.05 + 1e-9
        assert (policy.why == "") == (after == 1.0)
