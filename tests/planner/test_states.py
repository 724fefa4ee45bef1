"""The planner with a model whose sequences cannot be cut: their states are kept as a whole."""

from __future__ import annotations

from typing import Any

from llmaas.planner import actions as act
from llmaas.planner import events as ev
from llmaas.planner.states import EARLIER
from llmaas.records import StateSize
from tests.support.planner_world import Ctx, World, run_call, world

STATE = StateSize(fixed=5000, token=20)


def states_world(**changes: Any) -> World:
    return world(swappable=False, state=STATE, **changes)


def sources(w: World, ctx: Ctx, prompt: int, max_new: int) -> tuple[int, int, int, int]:
    """Where the context's tokens came from when it was called: CELLS, POOL, DISK, recomputed."""
    request = w.call(ctx, prompt, max_new)
    w.settle()
    switched = w.sources[request]
    return switched.cells, switched.pool, switched.disk, switched.recomputed


def push_out(w: World) -> None:
    """Another context takes all the cells."""
    other = w.open()
    run_call(w, other, w.s.ctx_limit - 1, 0)
    w.close(other)


def test_a_context_comes_back_from_the_pool_to_the_last_token() -> None:
    w = states_world()
    ctx = w.open()
    run_call(w, ctx, 300, 20)
    n_kv = ctx.n_kv
    push_out(w)
    assert w.planner.tiers(ctx.id) == (0, n_kv, 0, 0)
    assert sources(w, ctx, 10, 5) == (0, n_kv, 0, 0)


def test_it_comes_back_from_disk_after_a_start() -> None:
    w = states_world()
    ctx = w.open()
    run_call(w, ctx, 300, 20)
    n_kv = ctx.n_kv
    w.restart({}, 10.0)
    assert w.planner.tiers(ctx.id) == (0, 0, n_kv, 0)
    assert sources(w, ctx, 10, 5) == (0, 0, n_kv, 0)
    assert not w.planner.check()


def test_each_context_has_its_latest_state_on_disk_and_some_earlier_ones_in_the_pool() -> None:
    w = states_world()
    ctx = w.open()
    ends = []
    for _ in range(EARLIER + 3):
        run_call(w, ctx, 50, 0)
        ends.append(ctx.n_kv)
    assert w.disk.keys() == {ctx.key(ends[-1])}
    assert w.pool.keys() == {ctx.key(n) for n in ends[-EARLIER - 1 :]}
    w.truncate(ctx, ends[-3] + 1)
    w.settle()
    assert sources(w, ctx, 1, 0) == (0, ends[-3], 0, 1)
    w.close(ctx)
    w.settle()
    assert not w.pool and not w.disk and not w.planner.check()


def test_earlier_states_leave_the_pool_when_it_needs_their_room() -> None:
    w = states_world(pool_bytes=40_000)
    ctx, other = w.open(), w.open()
    for _ in range(3):
        run_call(w, ctx, 100, 0)
    n_kv = ctx.n_kv
    for _ in range(4):
        run_call(w, other, 150, 0)
    assert w.planner.tally.chunks_unsaved == 0
    push_out(w)
    moved = sources(w, ctx, 10, 5)
    assert moved[3] == 0 and sum(moved) == n_kv


def test_a_truncation_goes_on_from_the_state_before_it_and_an_undo_from_the_very_one() -> None:
    w = states_world()
    ctx = w.open()
    run_call(w, ctx, 100, 0)
    first = ctx.n_kv
    run_call(w, ctx, 300, 0)
    w.truncate(ctx, 250)
    assert w.planner.tiers(ctx.id) == (0, first, 0, 250 - first)
    assert sources(w, ctx, 5, 0) == (0, first, 0, 250 - first)
    w.truncate(ctx, first)
    assert sources(w, ctx, 0, 4) == (0, 0, 0, first - 1)  # an answer needs the last token's logits
    w.truncate(ctx, first - 50)
    assert w.planner.tiers(ctx.id) == (0, 0, 0, first - 50)


def test_a_fork_goes_on_from_the_state_of_its_origin() -> None:
    w = states_world()
    ctx = w.open()
    run_call(w, ctx, 300, 0)
    twin = w.fork(ctx)
    assert sources(w, twin, 20, 3) == (0, 299, 0, 0)
    assert sources(w, ctx, 20, 3) == (299, 0, 0, 0)
    w.close(ctx)
    w.settle()
    assert sources(w, twin, 1, 3)[3] == 0


def test_an_answer_after_an_append_computes_nothing_again() -> None:
    w = states_world()
    ctx = w.open()
    run_call(w, ctx, 300, 0)
    assert ctx.n_kv == 299  # the last token is left to the answer, which needs its logits
    assert sources(w, ctx, 0, 5) == (299, 0, 0, 0)
    assert sources(w, w.open(), 1, 0) == (0, 0, 0, 0)


def test_a_hint_brings_the_state_of_a_whole_answer_back_to_its_last_token() -> None:
    worlds = (states_world(seed=seed) for seed in range(100))
    w, ctx = next((w, ctx) for w in worlds if (ctx := ended(w)) is not None)
    push_out(w)
    assert sources(w, ctx, 0, 0) == (0, ctx.n_kv, 0, 0)
    assert sources(w, ctx, 0, 0) == (ctx.n_kv, 0, 0, 0)
    assert sources(w, ctx, 9, 0) == (ctx.n_kv - 8, 0, 0, 0)  # of these nine it leaves the last to what comes


def ended(w: World) -> Ctx | None:
    """A context whose answer has come to its end, so that its last token is in CELLS."""
    ctx = w.open()
    run_call(w, ctx, 100, 30)
    return ctx if ctx.n_kv == len(ctx.tokens) else None


def test_a_damaged_state_is_computed_again_and_kept_anew() -> None:
    w = states_world()
    ctx = w.open()
    run_call(w, ctx, 100, 0)
    first = ctx.n_kv
    run_call(w, ctx, 200, 0)
    push_out(w)
    w.send(ev.BudgetChanged(pool_bytes=0))
    w.settle()
    w.send(ev.BudgetChanged(pool_bytes=w.s.pool_bytes))
    w.faults = 1.0
    request = w.call(ctx, 10, 0)
    load = next(i for i, action in enumerate(w.due) if isinstance(action, act.LoadChunks))
    w.answer_one(load)
    w.faults = 0.0
    w.settle()
    moved = w.sources[request]
    assert (moved.disk, moved.recomputed) == (0, 299)
    assert first not in (moved.pool, moved.disk)
    assert w.disk.keys() == {ctx.key(ctx.n_kv)} and not w.planner.check()


def test_a_paused_call_goes_on_where_it_was_and_the_ends_of_calls_stay() -> None:
    w = states_world(n_seqs=1, max_running=1, quantum=8)
    ctx, other = w.open(), w.open()
    run_call(w, ctx, 100, 0)
    first = ctx.n_kv
    w.call(ctx, 30, 60, priority=5)
    w.call(other, 30, 60, priority=5)
    w.settle()
    assert w.planner.tally.pauses > 0 and w.planner.tally.tokens_recomputed == 0
    w.truncate(ctx, first + 1)
    assert sources(w, ctx, 1, 0) == (0, first, 0, 1)
