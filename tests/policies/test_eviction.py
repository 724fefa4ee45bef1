"""Eviction: each policy's order, plans that are enough or none, and Belady's bound."""

from __future__ import annotations

import dataclasses
import random
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.eviction import EVICTION, Arrival, Lctru, Lru, NextUse
from llmaas.policies.eviction.context_heap import ContextHeap
from llmaas.policies.eviction.rankings import IntervalRanking, rank
from llmaas.records import ChunkKey, ContextId
from llmaas.replay.bounds import belady, unbounded
from llmaas.replay.simulator import Replay
from llmaas.traces.call import TraceCall
from tests.support.planner_world import settings


def key(name: str, index: int) -> ChunkKey:
    return ChunkKey(f"{name}:{index}".encode())


def fill(policy: NextUse, name: str, chunks: int = 4) -> None:
    for i in range(chunks):
        policy.add(key(name, i), Arrival(ContextId(name), i, 64, 10), 0.0)


def numbered(i: int) -> ChunkKey:
    return ChunkKey(i.to_bytes(16, "big"))


def arrival(i: int) -> Arrival:
    return Arrival(ContextId(f"c{i % 4}"), i, 64, 1000)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30, unique=True), st.integers(1, 500), st.data())
def test_an_eviction_plan_is_enough_or_none(keys: list[int], need: int, data: st.DataObject) -> None:
    gains = {numbered(i): data.draw(st.sampled_from([0, 10, 25])) for i in keys}
    for name, make in EVICTION.items():
        policy = make()
        for i in keys:
            policy.add(numbered(i), arrival(i), float(i))
            policy.returned(arrival(i).context, float(i))
        plan = policy.victims(need, gains.__getitem__)
        if plan is None:
            assert sum(gains.values()) < need, name
        else:
            assert sum(gains[k] for k in plan) >= need
            assert len(set(plan)) == len(plan) and all(gains[k] for k in plan)


def test_lru_evicts_the_least_recently_used_that_may_go() -> None:
    lru = Lru()
    for i in range(4):
        lru.add(numbered(i), arrival(i), float(i))
    lru.touch(numbered(0), 9.0)
    assert lru.victims(20, lambda k: 0 if k == numbered(2) else 10) == [numbered(1), numbered(3)]
    lru.forget(numbered(1))
    assert lru.victims(10, lambda k: 10) == [numbered(2)]


def test_lctru_evicts_the_least_compressed_first_and_the_oldest_of_them() -> None:
    policy = Lctru()
    for i, nbytes in enumerate((1000, 4000, 2000, 4100)):
        policy.add(key("a", i), Arrival(ContextId("a"), i, 64, nbytes), 0.0)
    policy.touch(key("a", 1), 1.0)
    assert policy.victims(4, lambda k: 1) == [key("a", i) for i in (3, 1, 2, 0)]


def test_the_context_that_returns_least_goes_first_and_its_head_before_its_tail() -> None:
    policy = NextUse()
    for name in ("often", "seldom"):
        fill(policy, name)
    for name in ("seldom", "often", "often", "often", "seldom", "often", "often"):
        policy.returned(ContextId(name), 0.0)
    assert policy.victims(30, lambda k: 10) == [key("seldom", i) for i in range(3)]


def test_a_visitor_that_is_expected_later_than_all_others_stays_outside() -> None:
    policy = NextUse()
    fill(policy, "often")
    for _ in range(5):
        policy.returned(ContextId("often"), 0.0)
    policy.returned(ContextId("seldom"), 0.0)
    for _ in range(5):
        policy.returned(ContextId("often"), 0.0)
    assert policy.victims(10, lambda k: 10, candidate=ContextId("seldom")) is None
    assert policy.victims(10, lambda k: 10) == [key("often", 0)]


def trace(order: list[str]) -> list[TraceCall]:
    seen: set[str] = set()
    calls = []
    for i, name in enumerate(order):
        calls.append(TraceCall(i * 100.0, "app", name, 2 if name in seen else 640, 0))
        seen.add(name)
    return calls


def from_pool(calls: list[TraceCall], eviction: str) -> int:
    # "eager", since otherwise last chunks stay in the POOL whatever the policy.
    report = Replay(settings(pool_bytes=300_000, eviction=eviction, wear="eager")).run(calls)
    assert report.problems == ()
    return report.tally.tokens_from_pool


def test_strict_turns_in_little_memory_still_hit_the_pool() -> None:
    calls = trace([f"c{i % 8}" for i in range(160)])
    assert from_pool(calls, "lru") == 0
    whole = 640 * 160
    assert from_pool(calls, "returns") > 0.15 * whole  # the POOL holds three of eight, one of which CELLS hold, too


@pytest.mark.parametrize("eviction", EVICTION)
def test_no_policy_reads_less_from_disk_than_the_one_that_knows_the_future(eviction: str) -> None:
    rng = random.Random(4)
    calls = trace([f"c{min(int(rng.expovariate(0.2)), 15)}" for _ in range(200)])
    budget = settings(pool_bytes=300_000)
    least = belady(calls, budget)
    assert unbounded(calls, budget).tally.tokens_from_disk == 0
    assert least.problems == () and least.tally.tokens_from_disk > 0
    assert (
        Replay(dataclasses.replace(budget, eviction=eviction)).run(calls).tally.tokens_from_disk
        >= least.tally.tokens_from_disk
    )


def test_members_leave_in_the_order_of_their_ranks_whatever_came_before() -> None:
    rng = random.Random(2)
    ranking = IntervalRanking()
    members = ContextHeap(ranking)
    for tick in range(600):
        context = ContextId(f"c{rng.randrange(20)}")
        match rng.randrange(4):
            case 0:
                ranking.first_seen(context, tick)
                members.add(context)
            case 1:
                members.discard(context)
            case 2:
                ranking.returned(context, tick)
                if context in members:
                    members.add(context)
            case _ if len(members):
                here = [ContextId(f"c{i}") for i in range(20) if ContextId(f"c{i}") in members]
                worst = max(rank(ranking, c, tick) for c in here)
                gone = members.pop(tick)
                assert gone is not None and rank(ranking, gone, tick) == worst and gone not in members


def test_an_eviction_looks_at_its_victims_only_among_ten_thousand_contexts() -> None:
    looked = count()

    def gain(chunk: ChunkKey) -> int:
        next(looked)
        return 10

    policy = NextUse()
    for i in range(10_000):
        fill(policy, f"c{i}", 2)
        policy.returned(ContextId(f"c{i}"), 0.0)
    plan = policy.victims(30, gain)
    assert plan is not None and len(plan) == 3 == next(looked)
