"""Scheduling: who is next, who shares a step, who gives way, and nobody waits for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.policies.scheduling import SCHEDULING, Fair
from llmaas.policies.scheduling.recent_use import HALF_LIFE_S, RecentUse
from llmaas.records import AppId, RequestId

A, B = AppId("0/a"), AppId("0/b")


def fair(*calls: tuple[int, AppId, int], quantum: int = 10, ageing_s: float = 5.0) -> Fair:
    """A policy to which (request, app, priority) have been added at second 0."""
    policy = Fair(quantum, ageing_s)
    for request, app, priority in calls:
        policy.add(RequestId(request), app, priority, 0.0)
    return policy


def serve(policy: Fair, request: int, began: float, now: float, steps: float = 1, prompt: int = 0) -> None:
    policy.served(RequestId(request), began, now, steps, prompt, 0 if prompt else int(steps))


def test_the_queue_is_fair_within_a_priority_and_forgets_what_is_removed() -> None:
    for make in SCHEDULING.values():
        queue = make(64, 5.0)
        for request, priority in ((1, 5), (2, 0), (3, 5), (4, 9)):
            queue.add(RequestId(request), AppId("0/a"), priority, 0.0)
        queue.remove(RequestId(3))
        order = []
        while (head := queue.head(0.0)) is not None:
            order.append(head)
            queue.remove(head)
        assert order == [2, 1, 4] and len(queue) == 0


def test_whoever_is_more_urgent_comes_first_and_then_whoever_came_first() -> None:
    policy = fair((1, A, 5), (2, A, 1), (3, A, 5))
    order = []
    while (head := policy.head(0.0)) is not None:
        order.append(int(head))
        policy.admit(head)
    assert order == [2, 1, 3]


def test_the_app_that_was_served_least_is_next() -> None:
    policy = fair((1, A, 5), (2, A, 5), (3, B, 5))
    policy.admit(RequestId(1))
    serve(policy, 1, 0.0, 1.0, steps=8)
    assert policy.head(1.0) == 3


def test_an_app_that_was_away_gets_no_credit_for_it() -> None:
    policy = fair((1, A, 5))
    policy.admit(RequestId(1))
    serve(policy, 1, 0.0, 1.0, steps=1000)
    policy.add(RequestId(2), B, 5, 1.0)  # comes back after long
    policy.add(RequestId(3), A, 5, 1.0)
    policy.admit(RequestId(2))
    serve(policy, 2, 1.0, 2.0, steps=1)
    assert policy.head(2.0) == 3


def test_a_call_that_is_not_served_becomes_more_urgent_until_it_has_had_its_turn() -> None:
    policy = fair((1, A, 8), (2, B, 1))
    assert [policy.urgency(RequestId(1), now) for now in (0.0, 4.9, 5.0, 35.0, 99.0)] == [8, 8, 7, 1, 0]
    for step in range(10):
        assert policy.urgency(RequestId(1), 35.0) == 1, step
        serve(policy, 1, 35.0, 35.0)
    assert policy.urgency(RequestId(1), 35.0) == 8


def test_the_aged_share_the_steps_of_the_urgent_but_push_nobody_aside() -> None:
    policy = fair((1, A, 1), (2, B, 8), (3, B, 5))
    calls = [RequestId(i) for i in (1, 2, 3)]
    assert policy.select(calls, 0.0) == [1]
    serve(policy, 1, 35.0, 35.0)
    assert set(policy.select(calls, 35.0)) == {1, 2, 3}
    assert 1 in policy.select(calls, 99.0)


def test_the_urgent_take_a_place_at_once_and_equals_at_the_end_of_a_turn() -> None:
    policy = fair((1, A, 5), (2, B, 5), (3, B, 1))
    policy.admit(RequestId(1))
    assert policy.gives_way(RequestId(1), RequestId(3), 0.0)
    assert not policy.gives_way(RequestId(1), RequestId(2), 0.0)
    serve(policy, 1, 0.0, 1.0, steps=10)
    assert policy.gives_way(RequestId(1), RequestId(2), 1.0)
    assert not policy.gives_way(RequestId(3), RequestId(2), 1.0)


def test_an_app_with_many_places_gives_one_at_once_to_an_app_with_fewer_that_is_as_urgent() -> None:
    policy = fair((1, A, 5), (2, A, 5), (3, A, 5), (4, B, 5), (5, B, 6), (6, B, 5))
    for request in (1, 2, 3):
        policy.admit(RequestId(request))
    assert policy.gives_way(RequestId(1), RequestId(4), 0.0)
    assert not policy.gives_way(RequestId(1), RequestId(5), 0.0), "it is less urgent"
    assert not policy.gives_way(RequestId(1), RequestId(5), 9.0), "ageing takes no places"
    policy.pause(RequestId(1))
    policy.admit(RequestId(4))
    assert not policy.gives_way(RequestId(2), RequestId(6), 0.0), "one place more each would change nothing"
    assert not policy.gives_way(RequestId(4), RequestId(1), 0.0)
    policy.remove(RequestId(4))
    assert policy.gives_way(RequestId(2), RequestId(6), 0.0)
    policy.remove(RequestId(2))
    policy.remove(RequestId(1))
    assert not policy.gives_way(RequestId(3), RequestId(6), 0.0)


def test_an_app_with_many_places_that_was_served_less_keeps_them_or_it_would_be_next_again() -> None:
    policy = fair((1, A, 5), (2, A, 5), (3, A, 5), (4, B, 5))
    policy.admit(RequestId(4))
    serve(policy, 4, 0.0, 1.0, prompt=100)
    policy.pause(RequestId(4))
    for request in (1, 2, 3):
        policy.admit(RequestId(request))
    assert not policy.gives_way(RequestId(1), RequestId(4), 1.0)
    serve(policy, 1, 1.0, 2.0, prompt=100)
    assert policy.gives_way(RequestId(1), RequestId(4), 2.0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(4, 6)), min_size=3, max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 300)), max_size=20),
    st.integers(1, 8),
)
def test_who_is_admitted_does_not_give_way_at_once(
    calls: list[tuple[int, int]], served: list[tuple[int, int]], places: int
) -> None:
    """Otherwise it would be admitted and paused for ever, while others' steps run."""
    policy = fair(*((i, AppId(f"0/{app}"), priority) for i, (app, priority) in enumerate(calls)))
    running: list[RequestId] = []
    for who, prompt in served:
        while len(running) < places and (head := policy.head(0.0)) is not None:
            policy.admit(head)
            running.append(head)
        if who < len(running):
            serve(policy, running[who], 0.0, 0.0, prompt=prompt)
            policy.pause(running.pop(who))
    while (head := policy.head(0.0)) is not None:
        policy.admit(head)
        if (following := policy.head(0.0)) is not None:
            assert not policy.gives_way(head, following, 0.0)


def test_a_running_period_is_worth_its_switch() -> None:
    policy = fair((1, A, 5), (2, B, 5))
    policy.admit(RequestId(1))
    policy.switched_in(RequestId(1), 3.0)
    serve(policy, 1, 3.0, 4.0, steps=10)
    assert not policy.gives_way(RequestId(1), RequestId(2), 4.0)
    serve(policy, 1, 4.0, 9.0, steps=1)
    assert policy.gives_way(RequestId(1), RequestId(2), 9.0)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.floats(0.05, 3.0)), min_size=1, max_size=12))
def test_nobody_starves(calls: list[tuple[int, int, float]]) -> None:
    """One place, calls that never end: within the time that ageing and turns imply, each has been served."""
    policy, quantum, ageing = Fair(4, 1.0), 4, 1.0
    for i, (priority, app, _) in enumerate(calls):
        policy.add(RequestId(i), AppId(f"0/{app}"), priority, 0.0)
    served: dict[int, float] = {}
    running, now = None, 0.0
    quickest, slowest = min(seconds for _, _, seconds in calls), max(seconds for _, _, seconds in calls)
    # An app of quick steps may be alone until the others have aged; it then waits until they have as many tokens.
    debt = 9 * ageing / quickest
    bound = 9 * ageing + (40 * len(calls) * quantum * 2 + debt) * slowest
    while len(served) < len(calls):
        head = policy.head(now)
        if running is None or (head is not None and policy.gives_way(running, head, now)):
            assert head is not None
            policy.admit(head)
            if running is not None:
                policy.pause(running)
            running = head
        step = calls[running][2]
        policy.served(running, now, now + step, 1, 0, 1)
        now += step
        served.setdefault(int(running), now)
        assert now < bound, f"{len(served)} of {len(calls)} served"


def test_an_app_outdoes_another_by_what_it_was_served_lately_and_wants_now() -> None:
    policy = fair((1, A, 5), (2, B, 5))
    one, two = RequestId(1), RequestId(2)
    assert not policy.outdoes(one, 100, two, 100, 0.0) and not policy.outdoes(two, 100, one, 100, 0.0)
    assert policy.outdoes(one, 200, two, 100, 0.0) and not policy.outdoes(two, 100, one, 200, 0.0)
    serve(policy, 1, 0.0, 1.0, prompt=400)
    assert policy.outdoes(one, 100, two, 100, 1.0)
    assert not policy.outdoes(one, 100, two, 100, 4.0), "that is long ago"


def test_an_app_floods_if_it_takes_far_more_than_one_that_may_come_back() -> None:
    policy = fair((1, A, 5), (2, B, 5))
    one, two = RequestId(1), RequestId(2)
    serve(policy, 1, 0.0, 0.1, prompt=100)
    serve(policy, 2, 0.0, 0.1, prompt=400)
    assert not policy.floods(two, 0.1), "the other one is there"
    policy.remove(one)
    assert policy.floods(two, 0.1)
    assert not policy.floods(two, 20.0), "that is long ago"
    policy.add(one, A, 5, 0.2)
    assert not policy.floods(two, 0.2) and not policy.floods(one, 0.2)
    policy.remove(two)
    assert not policy.floods(one, 0.2), "who asks little floods nobody"


def test_of_apps_that_left_only_the_last_few_are_kept() -> None:
    policy = fair((0, A, 5))
    for i in range(1, 1000):
        policy.add(RequestId(i), AppId(f"0/{i}"), 5, 0.0)
        policy.remove(RequestId(i))
    policy.add(RequestId(1000), B, 5, 0.0)
    serve(policy, 1000, 0.0, 0.1, prompt=400)
    assert policy.floods(RequestId(1000), 0.1)


def test_what_an_app_took_alone_counts_little() -> None:
    policy = fair((1, A, 5))
    serve(policy, 1, 0.0, 1.0, prompt=400)
    policy.add(RequestId(2), B, 5, 1.0)
    one, two = RequestId(1), RequestId(2)
    assert not policy.outdoes(one, 100, two, 200, 1.0)
    assert policy.outdoes(two, 400, one, 100, 1.0)
    assert policy.outdoes(one, 100, two, 100, 1.0), "it makes room for who takes nothing yet"
    serve(policy, 1, 1.0, 1.0, prompt=400)
    assert policy.outdoes(one, 100, two, 200, 1.0), "the other one was there"

    use = RecentUse()
    use.add(B, 100, now=0.0)
    use.add(A, 100, now=0.9)
    assert use.of(A, 0.9) == 100 and use.of(B, 0.0) == 25
    use.add(A, 100, now=9.0)
    assert round(use.of(A, 9.0)) == 25, "the other one went long ago"


def test_recent_use_forgets_apps_whose_use_has_faded() -> None:
    use = RecentUse()
    for n in range(1000):
        use.add(AppId(f"0/{n}"), 10, now=n * HALF_LIFE_S)
    assert len(use) < 100
    assert use.of(AppId("0/999"), now=999 * HALF_LIFE_S) == 10


def test_of_apps_that_were_served_alike_the_one_with_fewer_calls_in_cells_is_admitted_first() -> None:
    policy = fair((1, A, 5), (2, A, 5), (3, B, 5))
    policy.admit(RequestId(1))
    assert policy.head(0.0) == 3
