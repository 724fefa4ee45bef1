"""What the planner holds does not grow with what has come and gone."""

from __future__ import annotations

import gc
import types

import pytest

from llmaas.planner import actions as act
from llmaas.policies.eviction import Arrival
from llmaas.policies.eviction.by_context import ByContext
from llmaas.policies.eviction.context_heap import ContextHeap
from llmaas.policies.eviction.rankings import IntervalRanking
from llmaas.records import AppId, ChunkKey, ContextId
from tests.support.planner_world import world


def size(root: object) -> int:
    """Objects that can be reached, classes and functions apart."""
    seen, todo = {id(root)}, [root]
    for o in todo:
        for child in gc.get_referents(o):
            if id(child) not in seen and not isinstance(child, type | types.FunctionType | types.ModuleType):
                seen.add(id(child))
                todo.append(child)
    return len(todo)


def test_a_planner_keeps_nothing_of_contexts_that_are_gone() -> None:
    w = world(seed=3, faults=0.05, split="balanced", disk_bytes=200_000)
    sizes = []
    for _ in range(10):
        for _ in range(40):
            ctx = w.open()
            w.call(ctx, w.rng.randint(1, 700), w.rng.choice([0, 30]))
            while ctx.busy:
                w.answer_one()
            heirs = [w.fork(ctx)] if w.rng.random() < 0.5 else []
            for old in (ctx, *heirs):  # while their chunks are being saved and written
                w.close(old)
                for _ in range(w.rng.randrange(3) if w.due else 0):
                    if w.due:
                        w.answer_one()
        w.settle()
        assert w.planner.check() == []
        sizes.append(size(w.planner))
    assert max(sizes[-4:]) < max(sizes[:4]) + 200, sizes


def test_a_planner_keeps_nothing_of_the_deadlines_and_limits_of_those_who_are_gone() -> None:
    w = world(app_rate=50.0)
    sizes = []
    for round in range(6):
        for i in range(300):
            ctx = w.open(AppId(f"1000/{round}-{i}"))
            request = w.call(ctx, 5, 3, deadline=1e9, rate=100.0)
            while any(not isinstance(action, act.WakeAt) or action.when < 1e9 for action in w.due):
                w.answer_one(next(n for n, a in enumerate(w.due) if not isinstance(a, act.WakeAt) or a.when < 1e9))
            assert w.finished[request].outcome is not act.Outcome.EXPIRED
            w.close(ctx)
        sizes.append(size(w.planner))
    assert max(sizes[-3:]) < max(sizes[:3]) + 200, sizes


def test_a_ranking_forgets_a_context_when_the_last_of_its_chunks_has_followed_it() -> None:
    ranking, gone = IntervalRanking(), ContextId("gone")
    policy = ByContext(ContextHeap(ranking))
    keys = [ChunkKey(bytes([i]) * 16) for i in range(3)]
    for i, key in enumerate(keys):
        policy.add(key, Arrival(gone, i, 64, 100), 0.0)
    policy.closed(gone)
    for key in keys:
        assert ranking.overdue(gone)
        policy.forget(key)
    with pytest.raises(KeyError):
        ranking.overdue(gone)


def test_members_that_are_looked_at_again_and_again_take_no_more_room() -> None:
    ranking = IntervalRanking()
    members = ContextHeap(ranking)
    for tick in range(100):
        ranking.returned(ContextId(str(tick % 5)), tick * 1000)
    for i in range(5):
        members.add(ContextId(str(i)))
    before = size(members)
    for _ in range(10_000):
        found = members.pop(0)
        assert found is not None
        members.add(found)
    assert size(members) < before + 500
