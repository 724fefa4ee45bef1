"""Chunks of a context come from another node, the last ones first, while its first ones are computed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmaas.planner import actions as act
from llmaas.planner import events as ev
from llmaas.records import CHUNK_TOKENS
from tests.planner.test_planner import random_event
from tests.support.planner_world import Ctx, World, world

N_CHUNKS = 15


def arriving(token_s: float = 0.01) -> tuple[World, Ctx]:
    """A context that waits: its keys name all of its whole chunks, of which the last one has come."""
    w = world()
    w.tick, w.token_s = 0.0, token_s
    ctx = w.open()
    ctx.tokens += [0] * (N_CHUNKS * CHUNK_TOKENS + 20)
    w.changed(ctx, N_CHUNKS * CHUNK_TOKENS)
    assert w.come(ctx, [N_CHUNKS - 1]) == 1
    return w, ctx


def steps(w: World) -> list[act.StepItem]:
    return [item for _, actions in w.log for a in actions if isinstance(a, act.RunStep) for item in a.items]


@pytest.mark.parametrize("per_step", [1, 2, 3])
def test_what_comes_is_loaded_and_what_does_not_is_computed_and_nothing_twice(per_step: int) -> None:
    w, ctx = arriving()
    request = w.call(ctx, 0, 0)
    behind = N_CHUNKS - 1
    while request not in w.finished:
        front = max(w.planner.n_begun(ctx.id), w.planner.tiers(ctx.id)[0])
        for _ in range(per_step):
            if (behind - 1) * CHUNK_TOKENS >= front:
                behind -= 1
                w.come(ctx, [behind])
        w.answer_one()
    w.settle()
    switch = w.sources[request]
    assert 0 < switch.recomputed == behind * CHUNK_TOKENS
    assert switch.disk == (N_CHUNKS - behind) * CHUNK_TOKENS
    assert w.planner.idle and not w.planner.check()
    assert sum(item.stop - item.start for item in steps(w)) == switch.recomputed + 20


def test_pieces_are_short_so_that_a_piece_does_not_take_what_is_about_to_come() -> None:
    w, ctx = arriving(token_s=0.02)
    request = w.call(ctx, 0, 0)
    begun = list[int]()
    while request not in w.finished:
        begun.append(w.planner.n_begun(ctx.id) // CHUNK_TOKENS)
        w.answer_one()
    pieces = sorted({*begun} - {0})
    assert pieces[-1] == N_CHUNKS - 1, "one that nobody sends is computed"
    assert max(later - n for n, later in zip([0, *pieces], pieces, strict=False)) <= 5, "none was known to be slow"
    assert w.sources[request].recomputed == (N_CHUNKS - 1) * CHUNK_TOKENS


def test_once_a_call_has_ended_nothing_is_on_its_way_any_more() -> None:
    w, ctx = arriving()
    w.call(ctx, 0, 0)
    w.settle()
    ctx.tokens += [1] * 900
    w.truncate(ctx, 0)
    ctx.tokens += [1] * 900
    w.changed(ctx, 896)
    w.call(ctx, 0, 0)
    assert w.planner.n_begun(ctx.id) == 896, "all in one go"
    w.settle()


@given(seed=st.integers(0, 2**32), faults=st.sampled_from([0.0, 0.2]), disk=st.sampled_from([5_000, 200_000]))
@example(seed=81465, faults=0.2, disk=200_000)  # a context is cut while chunks of it are read ahead
@hypothesis_settings(max_examples=60, deadline=None)
def test_they_come_to_calls_in_any_state_and_the_books_balance(seed: int, faults: float, disk: int) -> None:
    w = world(seed, faults=faults, disk_bytes=disk, pool_bytes=40_000)
    for _ in range(w.rng.randrange(40, 120)):
        random_event(w)
        if w.ctxs and w.rng.random() < 0.5:
            ctx = w.rng.choice(list(w.ctxs.values()))
            w.come(ctx, w.rng.sample(range(16), 3))
        for _ in range(w.rng.randrange(4)):
            if w.due:
                w.answer_one()
        assert all(problem.startswith("DISK: ") for problem in w.planner.check())
    w.faults = min(faults, 0.1)
    w.settle()
    assert w.finished.keys() == w.calls.keys() and w.planner.idle and not w.planner.check()
    assert w.planner.disk_used == sum(w.disk.values()) <= w.planner.disk_quota


def test_what_comes_for_a_context_that_disk_had_let_go_can_be_dropped_again() -> None:
    w = world(disk_bytes=10_000)
    ctx = w.open()
    ctx.tokens += [0] * (4 * CHUNK_TOKENS)
    w.changed(ctx, 4 * CHUNK_TOKENS)
    for indices in ([1], [3, 2]):
        w.send(ev.BudgetChanged(disk_bytes=10_000))
        assert w.come(ctx, indices, nbytes=4000) == len(indices)
        w.send(ev.BudgetChanged(disk_bytes=0))  # somebody needs the room
        assert w.planner.disk_used == 0 and not w.planner.check()
