"""Bytes that connections hold: shares, and who is served when some come back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmaas.api.buffer_budget import BufferBudget


def test_who_waits_is_served_in_order_and_a_full_share_holds_up_its_own_app_only() -> None:
    budget, served = BufferBudget(total=100, per_app=50), list[str]()
    assert budget.take("a", 50) and budget.take("b", 40) and not budget.take("a", 1)
    budget.wait("a", 30, lambda: served.append("a 30"))
    assert not budget.crowded
    budget.wait("c", 20, lambda: served.append("c 20"))
    assert budget.crowded
    budget.wait("d", 5, lambda: served.append("d 5"))
    budget.give_back("b", 40)
    assert served == ["c 20", "d 5"]
    budget.give_back("a", 50)
    assert served[2:] == ["a 30"]
    assert (budget.used, budget.crowded) == (55, False)


def test_who_stops_waiting_holds_nobody_up() -> None:
    budget, served = BufferBudget(total=100, per_app=100), list[str]()
    assert budget.take("a", 90)
    waiting = budget.wait("b", 50, lambda: served.append("b"))
    budget.wait("c", 10, lambda: served.append("c"))
    assert served == []
    budget.stop_waiting(waiting)
    assert served == ["c"]


def test_what_is_larger_than_a_share_has_room_when_its_app_and_the_rest_hold_nothing() -> None:
    budget = BufferBudget(total=100, per_app=50)
    assert budget.take("a", 200)
    assert not budget.take("b", 1)
    budget.give_back("a", 200)
    assert budget.take("b", 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), max_size=40))
def test_nothing_is_lost_and_no_more_is_held_than_there_is(asked: list[tuple[str, int]]) -> None:
    budget, held = BufferBudget(total=100, per_app=60), list[tuple[str, int]]()
    for app, nbytes in asked:
        if budget.take(app, nbytes):
            held.append((app, nbytes))
        else:
            budget.wait(app, nbytes, lambda app=app, nbytes=nbytes: held.append((app, nbytes)))  # type: ignore[misc]
        assert budget.used == sum(n for _, n in held) <= 100
    while held:
        budget.give_back(*held.pop(0))
        assert budget.used == sum(n for _, n in held) <= 100
    assert budget.used == 0 and not budget.crowded


def test_what_grows_needs_room_and_alone_it_holds_up_nothing_of_its_app() -> None:
    budget, served = BufferBudget(total=100, per_app=40), list[str]()
    assert budget.take("a", 20) and budget.grow("a", 20, 70)
    assert budget.held("a") == budget.used == 70 and budget.in_share("a")
    assert budget.take("b", 20) and budget.grow("b", 20, 15)
    assert not budget.grow("b", 20, 31), "no room in all"
    assert budget.grow("b", 20, 30) and budget.used == 100
    budget.take_anyway("a", 1)
    assert not budget.in_share("a")
    budget.wait("a", 0, lambda: served.append("a"))
    budget.give_back("a", 1)
    assert served == ["a"]
    budget.give_back("a", 70)
    budget.take_anyway("a", 41)
    assert not budget.in_share("a"), "the next one is not the one that was alone"
    budget.give_back("a", 41)
    assert budget.take("b", 10) and not budget.grow("b", 10, 11), "no room in its share"
