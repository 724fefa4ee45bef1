from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.eviction import EVICTION, Arrival, Lru
from llmaas.policies.scheduling import SCHEDULING
from llmaas.policies.split import SPLIT, Hole
from llmaas.records import AppId, ChunkKey, ContextId, RequestId


def key(i: int) -> ChunkKey:
    return ChunkKey(i.to_bytes(16, "big"))


def arrival(i: int) -> Arrival:
    return Arrival(ContextId(f"c{i % 4}"), i, 64, 1000)


def test_lru_evicts_the_least_recently_used_that_may_go() -> None:
    lru = Lru()
    for i in range(4):
        lru.add(key(i), arrival(i), float(i))
    lru.touch(key(0), 9.0)
    assert lru.victims(20, lambda k: 0 if k == key(2) else 10) == [key(1), key(3)]
    lru.forget(key(1))
    assert lru.victims(10, lambda k: 10) == [key(2)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30, unique=True), st.integers(1, 500), st.data())
def test_an_eviction_plan_is_enough_or_none(keys: list[int], need: int, data: st.DataObject) -> None:
    gains = {key(i): data.draw(st.sampled_from([0, 10, 25])) for i in keys}
    for name, make in EVICTION.items():
        policy = make()
        for i in keys:
            policy.add(key(i), arrival(i), float(i))
            policy.returned(arrival(i).context, float(i))
        plan = policy.victims(need, gains.__getitem__)
        if plan is None:
            assert sum(gains.values()) < need, name
        else:
            assert sum(gains[k] for k in plan) >= need
            assert len(set(plan)) == len(plan) and all(gains[k] for k in plan)


def hole(compute: float, read: float, place: float, n: int = 20, pending: float = 0.0) -> Hole:
    """``n`` chunks alike, with seconds for each."""
    return Hole(
        compute=[i * compute for i in range(n + 1)],
        read=[pending + i * read for i in range(n + 1)],
        place=[i * place for i in range(n + 1)],
    )


@given(st.floats(1e-4, 10), st.floats(1e-4, 10), st.floats(1e-5, 1e-2), st.integers(1, 60), st.floats(0, 5))
def test_no_split_is_better_than_the_balanced_one(
    compute: float, read: float, place: float, n: int, pending: float
) -> None:
    asked = hole(compute, read, place, n, pending)
    found = asked.seconds(SPLIT["balanced"]().split(asked))
    assert found <= min(asked.seconds(m) for m in range(n + 1))


def test_a_fast_disk_is_only_read_and_a_dead_slow_one_never() -> None:
    for name, split in SPLIT.items():
        fast, even, slow = (split().split(hole(1.0, read, 0.001)) for read in (0.01, 1.0, 100.0))
        assert (fast, slow) == {"load_first": (0, 0), "recompute_first": (20, 20), "balanced": (0, 20)}[name]
        if name == "balanced":
            assert 9 <= even <= 11


def test_what_is_already_being_read_counts_for_the_reading_side() -> None:
    balanced = SPLIT["balanced"]()
    assert balanced.split(hole(1.0, 1.0, 0.001, pending=10.0)) > balanced.split(hole(1.0, 1.0, 0.001)) + 3


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
