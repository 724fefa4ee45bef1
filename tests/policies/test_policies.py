from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.eviction import EVICTION, Lru
from llmaas.policies.scheduling import SCHEDULING
from llmaas.policies.split import SPLIT, Segment, Way
from llmaas.records import ChunkKey, RequestId, Tier


def key(i: int) -> ChunkKey:
    return ChunkKey(i.to_bytes(16, "big"))


def test_lru_evicts_the_least_recently_used_that_may_go() -> None:
    lru = Lru()
    for i in range(4):
        lru.touch(key(i), float(i))
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
            policy.touch(key(i), float(i))
        plan = policy.victims(need, gains.__getitem__)
        if plan is None:
            assert sum(gains.values()) < need, name
        else:
            assert sum(gains[k] for k in plan) >= need
            assert len(set(plan)) == len(plan) and all(gains[k] for k in plan)


@given(st.lists(st.sampled_from([Tier.POOL, Tier.DISK, Tier.NONE]), min_size=1, max_size=40))
def test_segments_cover_every_chunk_once_and_load_none_that_is_missing(tiers: list[Tier]) -> None:
    for make in SPLIT.values():
        segments = make().plan(tiers)
        assert [i for s in segments for i in range(s.first, s.stop)] == list(range(len(tiers)))
        assert all(tiers[i] is not Tier.NONE for s in segments if s.way is Way.LOAD for i in range(s.first, s.stop))


def test_load_first_recomputes_only_what_has_no_copy() -> None:
    plan = SPLIT["load_first"]().plan([Tier.POOL, Tier.DISK, Tier.NONE, Tier.POOL])
    assert plan == [Segment(Way.LOAD, 0, 2), Segment(Way.RECOMPUTE, 2, 3), Segment(Way.LOAD, 3, 4)]


def test_the_queue_is_fair_within_a_priority_and_forgets_what_is_removed() -> None:
    for make in SCHEDULING.values():
        queue = make()
        for request, priority in ((1, 5), (2, 0), (3, 5), (4, 9)):
            queue.add(RequestId(request), priority, 0.0)
        queue.remove(RequestId(3))
        order = []
        while (head := queue.head(0.0)) is not None:
            order.append(head)
            queue.remove(head)
        assert order == [2, 1, 4] and len(queue) == 0
