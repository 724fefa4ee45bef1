"""Wear: bytes a day, the price of a byte, and how often what a quota keeps is replaced."""

from __future__ import annotations

import pytest

from llmaas.policies.wear import WEAR, DailyBytes, Eager, Sparing
from llmaas.records import NO_QUOTA

DAY_S = 86_400.0


def test_without_a_budget_the_price_of_a_byte_is_small_and_never_moves() -> None:
    wear = Sparing(NO_QUOTA, NO_QUOTA)
    for day in range(3):
        wear.advance(day * DAY_S)
        wear.wrote(1 << 40)
        assert wear.price() == pytest.approx(1e-9)


def test_the_price_rises_as_the_budget_goes_and_falls_as_it_comes_back() -> None:
    wear = Sparing(1_000_000, NO_QUOTA)
    wear.advance(0.0)
    prices = []
    for _ in range(12):
        prices.append(wear.price())
        wear.wrote(100_000)
    assert prices[0] == prices[5] < prices[6] < prices[8] < prices[10] == prices[11]
    assert prices[10] > 1e5 * prices[0], "over the budget hardly anything is worth its bytes"
    wear.advance(DAY_S / 2)
    assert prices[6] < wear.price() < prices[9]
    wear.advance(2 * DAY_S)
    assert wear.price() == prices[0]


def test_a_budget_of_nothing_writes_nothing() -> None:
    wear = Sparing(0, NO_QUOTA)
    wear.advance(0.0)
    assert wear.price() > 1e-4


def test_what_a_quota_keeps_is_replaced_once_at_once_and_then_half_of_it_a_day() -> None:
    wear, replaced = Sparing(NO_QUOTA, 1000), 0
    for hour in range(10 * 24):
        wear.advance(hour * 3600.0)
        while wear.may_replace(10):
            wear.replaced(10)
            replaced += 10
    assert replaced == pytest.approx(1000 + 10 * 500, rel=0.02)
    wear.set_quota(5000)
    assert wear.may_replace(5000)
    assert not wear.may_replace(5001)


def test_the_eager_one_writes_everything() -> None:
    wear = Eager(0, 0)
    wear.advance(0.0)
    wear.wrote(1 << 50)
    assert wear.price() < 0 and wear.may_replace(1 << 50) and wear.writes_last
    assert set(WEAR) == {"eager", "sparing", "late"}
    assert [name for name in WEAR if not WEAR[name](0, 0).ahead] == ["late"]


def test_time_that_stands_still_or_is_not_known_yet_gives_nothing() -> None:
    budget = DailyBytes(most=10, daily=10)
    budget.take(10)
    budget.advance(5.0)
    budget.advance(5.0)
    assert budget.left == 0
