"""Rate limits: held in the mean, by name, and forgotten with those who owe nothing."""

from __future__ import annotations

import math

import pytest

from llmaas.policies.rate_limits import RateLimits


@pytest.mark.parametrize("late", [0.0, 0.003, 0.1])
@pytest.mark.parametrize("rate", [3.0, 50.0])
def test_a_limit_is_held_in_the_mean_even_if_every_wake_is_late(rate: float, late: float) -> None:
    rates, now, served = RateLimits(), 0.0, 0
    rates.set("x", rate)
    while now < 20.0:
        now = max(now, rates.ready("x") + late, 0.0)
        rates.charge("x", 1, now)
        served += 1
    assert served / now == pytest.approx(rate, rel=0.05)


def test_who_has_no_limit_of_its_own_has_everybodys() -> None:
    rates = RateLimits(default=1.0)
    rates.set("free", None)
    rates.set("fast", 100.0)
    for name in ("x", "y", "y", "fast", "free"):
        rates.charge(name, 10, 0.0)
    assert rates.ready("x") == 10.0 and rates.ready("x", "y") == 20.0
    assert rates.ready("fast") == pytest.approx(0.1) and rates.ready("free") == rates.ready("new") == -math.inf
    for i in range(1000):  # names that come once; who owes something is not forgotten
        rates.charge(i, 1, i * 0.01)
    assert rates.ready("y") == 20.0 and rates.ready(0) == -math.inf and rates.ready(999) == pytest.approx(10.99)


def test_what_has_no_limit_is_free_and_a_lifted_limit_is_forgotten() -> None:
    rates = RateLimits()
    rates.set("x", 1.0)
    rates.charge("x", 100, 0.0)
    assert rates.ready("x", "y") > 90 and rates.ready("y") == -math.inf
    rates.set("x", None)
    assert rates.ready("x") == -math.inf and not rates
