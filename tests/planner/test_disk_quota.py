"""The disk quota: the coldest contexts' chunks go, no others, and what has no room on DISK is no burden to the POOL."""

from __future__ import annotations

from typing import Any

import pytest

from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.ledger import Chunk, Ledger
from llmaas.planner import actions as act
from llmaas.planner import events as ev
from llmaas.records import AppId, ChunkKey, Precision
from tests.support.planner_world import APP, GEOMETRY, Ctx, World, run_call, world

OTHER = AppId("0/other")


def room(n: int) -> int:
    """Bytes for ``n`` full chunks; that a first chunk is a little larger does not matter."""
    return int((n + 0.5) * Codec(GEOMETRY).encoded_size(64, Precision(4, 4)))


def on_disk(w: World, ctx: Ctx) -> int:
    return sum(key in w.disk for key in ctx.keys(ctx.n_kv))


def test_when_the_quota_is_reached_the_coldest_contexts_leave_the_disk_last_chunk_first() -> None:
    w = world(disk_bytes=room(25), pool_bytes=room(500))
    contexts = [w.open() for _ in range(3)]
    for ctx in contexts:
        run_call(w, ctx, 640, 0)
    assert [on_disk(w, c) for c in contexts] == [5, 10, 10]
    assert [k in w.disk for k in contexts[0].keys(640)] == [True] * 5 + [False] * 5
    run_call(w, contexts[0], 0, 0)  # used again, it is the warmest, and what it has in the POOL is written again
    assert [on_disk(w, c) for c in contexts] == [10, 5, 10]
    assert not w.planner.check()


def test_a_chunk_is_as_warm_as_the_warmest_context_that_contains_it() -> None:
    w = world(disk_bytes=room(20), pool_bytes=room(500))
    old = w.open()
    run_call(w, old, 640, 0)
    fork, cold = w.fork(old), w.open()
    run_call(w, cold, 320, 0)
    run_call(w, fork, 0, 0)
    run_call(w, w.open(), 640, 0)
    assert (on_disk(w, old), on_disk(w, cold)) == (10, 0), "old is coldest, but its fork is not"
    w.close(fork)
    run_call(w, w.open(), 320, 0)
    assert on_disk(w, old) == 5
    assert not w.planner.check()


def test_a_context_larger_than_the_quota_keeps_its_beginning_and_does_not_push_itself_out() -> None:
    w = world(disk_bytes=room(4), pool_bytes=room(6))
    ctx = w.open()
    run_call(w, ctx, 640, 0)
    assert [k in w.disk for k in ctx.keys(640)] == [True] * 4 + [False] * 6
    assert w.planner.tally.chunks_written == 4 and w.planner.tally.chunks_left_disk == 0
    other = w.open()
    run_call(w, other, 900, 0)  # needs all the cells, and the POOL, which may lose what DISK has no room for
    assert w.planner.tally.chunks_unsaved == 0
    request = w.call(ctx, 1, 0)
    w.settle()
    assert w.sources[request].recomputed > 0 and w.finished[request].outcome is act.Outcome.APPENDED


def test_a_smaller_quota_drops_the_coldest_at_once_and_a_larger_one_lets_them_in_again() -> None:
    w = world(pool_bytes=room(500))
    contexts = [w.open() for _ in range(3)]
    for ctx in contexts:
        run_call(w, ctx, 640, 0)
    w.send(ev.BudgetChanged(disk_bytes=room(12)))
    assert [on_disk(w, c) for c in contexts] == [0, 2, 10]
    assert w.planner.pool_used > room(29), "what is in RAM stays there"
    run_call(w, contexts[0], 0, 0)
    assert [on_disk(w, c) for c in contexts] == [10, 0, 2]
    w.send(ev.BudgetChanged(disk_bytes=room(18)))
    w.settle()
    assert [on_disk(w, c) for c in contexts] == [10, 0, 2], "what was pushed out comes back when it is used"
    run_call(w, contexts[1], 0, 0)
    assert [on_disk(w, c) for c in contexts] == [8, 10, 0]


def test_on_a_full_disk_colder_contexts_make_room_and_the_write_is_tried_again_once() -> None:
    w = world(pool_bytes=room(500))
    cold, ctx = w.open(), w.open()
    run_call(w, cold, 640, 0)
    w.call(ctx, 128, 0)
    for still_full in (True, False):
        while not (writes := [a for a in w.due if isinstance(a, act.WriteChunks)]):
            w.answer_one()
        if still_full:
            w.due.remove(writes[0])
            w.send(ev.Written(writes[0].write, (ev.FAILED,) * len(writes[0].keys), full=True))
            assert on_disk(w, cold) == 0, "whole contexts: their files go"
    w.settle()
    assert on_disk(w, ctx) == 2


def test_ten_thousand_idle_contexts_cost_a_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call under a full quota looks up in the ledger does not depend on how many contexts are idle."""
    looks = []
    for n in (100, 1000):
        w = world(disk_bytes=room(40), pool_bytes=room(60))
        for _ in range(n):
            ctx = w.open()
            run_call(w, ctx, 64, 0)
        with monkeypatch.context() as patch:
            counted, chunk = [0], Ledger.chunk

            def count(ledger: Ledger, key: ChunkKey, counted: list[int] = counted, chunk: Any = chunk) -> Chunk:
                counted[0] += 1
                return chunk(ledger, key)  # type: ignore[no-any-return]

            patch.setattr(Ledger, "chunk", count)
            run_call(w, w.open(), 64, 0)
        looks.append(counted[0])
    assert looks[0] == looks[1] > 0


# -- quotas of single apps


def test_an_apps_own_quota_lets_its_coldest_contexts_go_and_no_others() -> None:
    w = world(disk_bytes=room(100), pool_bytes=room(500))
    other = w.open(app=OTHER)
    run_call(w, other, 640, 0)
    w.send(ev.AppDiskChanged(APP, room(15)))
    contexts = [w.open() for _ in range(3)]
    for ctx in contexts:
        run_call(w, ctx, 640, 0)
    assert [on_disk(w, c) for c in contexts] == [0, 5, 10]
    assert on_disk(w, other) == 10, "it is colder than all of them"
    run_call(w, contexts[0], 0, 0)
    assert [on_disk(w, c) for c in contexts] == [10, 0, 5]
    assert w.planner.disk_used_of(APP) <= room(15) and w.planner.disk_used_of(OTHER) > room(9)
    assert not w.planner.check()


def test_an_apps_own_quota_can_shrink_and_grow_and_go() -> None:
    w = world(pool_bytes=room(500))
    contexts, other = [w.open() for _ in range(2)], w.open(app=OTHER)
    for ctx in (other, *contexts):
        run_call(w, ctx, 640, 0)
    for nbytes, expected in ((room(12), [2, 10]), (0, [0, 0]), (room(30), [0, 0])):
        w.send(ev.AppDiskChanged(APP, nbytes))
        w.settle()
        assert [on_disk(w, c) for c in contexts] == expected
        assert on_disk(w, other) == 10 and not w.planner.check()
    run_call(w, contexts[0], 0, 0)
    assert on_disk(w, contexts[0]) == 10
    w.send(ev.AppDiskChanged(APP, None))
    for ctx in contexts:
        run_call(w, ctx, 0, 0)
    assert [on_disk(w, c) for c in contexts] == [10, 10]
    assert not w.planner.check()


def test_an_app_without_disk_writes_nothing_and_keeps_working() -> None:
    w = world(pool_bytes=room(6))
    w.send(ev.AppDiskChanged(APP, 0))
    ctx, other = w.open(), w.open(app=OTHER)
    run_call(w, ctx, 640, 0)
    run_call(w, other, 640, 0)
    assert on_disk(w, ctx) == 0 and on_disk(w, other) == 10
    run_call(w, ctx, 1, 0)
    assert w.planner.disk_used_of(APP) == 0 and not w.planner.check()


def test_the_quota_of_all_holds_for_an_app_with_a_larger_one() -> None:
    w = world(disk_bytes=room(15), pool_bytes=room(500))
    w.send(ev.AppDiskChanged(APP, room(100)))
    for _ in range(3):
        run_call(w, w.open(), 640, 0)
    assert w.planner.disk_used <= room(15) and not w.planner.check()
