"""Links of a cluster that are slow, stall, or are cut while a context moves in the middle of an answer: whoever asks
reads all of it, others are not held up, and one node has the context."""

from __future__ import annotations

import time
from importlib.util import find_spec

import pytest

from tests.support.daemon import answer_to
from tests.support.ray_house import LATE, RayHouse
from tests.support.ray_moves import (
    AskedOfEntry,
    MovedByEntry,
    answer_after,
    judge,
    source_and_target,
    talked,
    the_owner,
    under_way,
)

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra cluster", allow_module_level=True)
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
STALL_S = 3.0


def ended(house: RayHouse, *threads: AskedOfEntry | MovedByEntry) -> None:
    for thread in threads:
        thread.join(LATE)
        assert not thread.is_alive(), "it neither goes on nor ends"
    house.until(lambda: all(node["serving"] for node in house.status()["nodes"]), "all serve")


@pytest.mark.parametrize("n_bytes", [0, 1500, 4000])
def test_a_link_that_is_cut_costs_the_move_at_most(house: RayHouse, n_bytes: int) -> None:
    name = f"cut-{n_bytes}"
    before = talked(house, name)
    expected = answer_after(before)
    _, target = source_and_target(house, name)
    asked, moved = under_way(house, name, target, n_bytes)
    house.links[target].cut()
    house.links[target].bits_per_s = 0.0
    ended(house, asked, moved)
    owner = the_owner(house, name)
    judge(house, owner, name, before, expected, asked)
    assert asked.done or owner == target, "who has not lost the context goes on with the answer"
    assert owner == target or moved.error, "whoever asked for the move is told that it failed"
    with house.client() as client:
        client.ask(name, "and?", max_tokens=5)


@pytest.mark.parametrize("how", ["slow", "stalled"])
def test_a_link_that_is_slow_or_stalls_holds_up_nobody_and_the_answer_goes_on(house: RayHouse, how: str) -> None:
    name = f"link-{how}"
    before = talked(house, name)
    expected = answer_after(before)
    _, target = source_and_target(house, name)
    asked, moved = under_way(house, name, target)
    house.links[target].is_stalled = how == "stalled"
    begun, n_told = time.monotonic(), len(asked.tokens)
    with house.client() as client:
        client.create(name=f"beside-{how}")
        assert client.ask(f"beside-{how}", "hello", max_tokens=8) == answer_to("hello")
    if how == "stalled":
        house.until(lambda: time.monotonic() - begun > STALL_S or asked.done, "it has stalled for long")
        assert moved.is_alive(), "nothing goes over it, and nothing has given it up"
        assert len(asked.tokens) > n_told, "the source goes on meanwhile"
        house.links[target].is_stalled = False
    house.links[target].bits_per_s = 0.0
    ended(house, asked, moved)
    owner = the_owner(house, name)
    judge(house, owner, name, before, expected, asked)
    assert (asked.done, asked.error, moved.error, owner) == (True, "", "", target)
