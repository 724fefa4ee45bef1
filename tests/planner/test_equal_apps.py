"""Precedence in virtual time: apps that ask alike lose nothing by it, and who asks little beside a flood wins."""

from __future__ import annotations

import pytest

from tests.support.closed_loop import AppLoad, ClosedLoop, Outcomes

LOADS = {
    "one call each": {f"app-{i}": AppLoad(1, (50, 300), 32) for i in range(8)},
    "four calls each": {f"app-{i}": AppLoad(4, (50, 300), 32) for i in range(4)},
    "short prompts": {f"app-{i}": AppLoad(1, (20, 20), 4, pause_s=0.05) for i in range(8)},
}
FLOOD = {"flood": AppLoad(16, (200, 600), 32)} | {"few": AppLoad(3, (50, 130), 8, pause_s=0.5)}


def with_and_without(loads: dict[str, AppLoad], seed: int, total: int) -> tuple[Outcomes, Outcomes]:
    return ClosedLoop(loads, seed).run(total), ClosedLoop(loads, seed, rules=1).run(total)


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_apps_that_ask_alike_are_as_fast_as_without_precedence(name: str, seed: int) -> None:
    found, without = with_and_without(LOADS[name], seed, 200)
    assert found.tokens_per_s > 0.96 * without.tokens_per_s
    assert found.quantile(0.5) < 1.25 * without.quantile(0.5)
    assert found.quantile(0.9) < 1.25 * without.quantile(0.9)


@pytest.mark.parametrize("seed", [1, 2])
def test_who_asks_little_beside_a_flood_wins_and_the_flood_loses_little(seed: int) -> None:
    found, without = with_and_without(FLOOD, seed, 120)
    assert found.tokens_per_s > 0.82 * without.tokens_per_s, "its steps are short while the other app may come back"
    assert found.quantile(0.5, "few") < 0.6 * without.quantile(0.5, "few")
    assert found.quantile(0.9, "few") < 0.8 * without.quantile(0.9, "few")


def test_calls_of_equal_apps_use_all_places() -> None:
    """A call that was admitted and paused without end once left them a sixth of this."""
    assert ClosedLoop(LOADS["four calls each"], 1).run(60).tokens_per_s > 2000
