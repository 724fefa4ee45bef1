"""Contexts that are expected after a start: their chunks go to the POOL where it is free, while nobody calls."""

from __future__ import annotations

from llmaas.planner import actions as act
from llmaas.planner import events as ev
from llmaas.records import NO_QUOTA, ContextId
from tests.support.planner_world import Ctx, World, world


def started_again(n: int = 4, tokens: int = 320) -> tuple[World, list[Ctx]]:
    """After a start: ``n`` contexts, all on DISK only."""
    w = world(disk_bytes=NO_QUOTA, ctx_limit=512, wear="eager")
    contexts = [w.open() for _ in range(n)]
    for ctx in contexts:
        w.call(ctx, tokens, 0)
        w.settle()
    w.send(ev.Flush())
    w.settle()
    w.restart({}, 10.0)
    assert all(w.planner.tiers(ctx.id) == (0, 0, tokens, 0) for ctx in contexts)
    return w, contexts


def expect(w: World, *contexts: Ctx) -> None:
    w.send(ev.ContextsExpected(tuple(ctx.id for ctx in contexts)))


def tokens_in_pool(w: World, contexts: list[Ctx]) -> list[int]:
    return [w.planner.tiers(ctx.id)[1] for ctx in contexts]


def fetched(w: World) -> list[act.FetchChunks]:
    return [a for _, actions in w.log for a in actions if isinstance(a, act.FetchChunks)]


def test_as_many_contexts_as_the_pool_has_free_room_for_are_read_the_first_ones_first() -> None:
    w, contexts = started_again()
    w.send(ev.BudgetChanged(pool_bytes=sum(w.disk.values()) * 5 // 8))
    expect(w, *contexts)
    assert not w.planner.idle
    w.settle()
    assert w.planner.idle and tokens_in_pool(w, contexts) == [320, 320, 0, 0]
    assert [action.context for action in fetched(w)] == [contexts[0].id, contexts[1].id]
    assert not [a for _, actions in w.log for a in actions if isinstance(a, act.DropPool)]
    assert w.planner.check() == []


def test_a_call_finds_them_in_the_pool() -> None:
    w, contexts = started_again()
    expect(w, *contexts)
    w.settle()
    call = w.call(contexts[2], 10, 1)
    w.settle()
    assert (w.sources[call].pool, w.sources[call].disk) == (320, 0)


def test_while_there_is_a_call_nothing_more_is_read() -> None:
    w, contexts = started_again()
    call = w.call(contexts[0], 10, 20)
    expect(w, *contexts)
    w.settle()
    actions = [a for _, actions in w.log for a in actions if isinstance(a, act.Finish | act.FetchChunks)]
    assert isinstance(actions[0], act.Finish) and actions[0].request == call and len(actions) > 1
    assert tokens_in_pool(w, contexts)[1:] == [320, 320, 320]


def test_a_context_that_is_deleted_meanwhile_and_one_that_is_not_known_do_no_harm() -> None:
    w, contexts = started_again()
    expect(w, *contexts, Ctx(ContextId("unknown"), 99))
    w.close(contexts[3])
    w.close(contexts[2])
    w.settle()
    assert tokens_in_pool(w, contexts[:2]) == [320, 320]
    assert w.planner.check() == [] and len(w.pool) == 10


def test_a_service_that_stops_reads_no_more() -> None:
    w, contexts = started_again()
    expect(w, *contexts)
    w.send(ev.Flush())
    w.settle()
    assert sum(map(bool, tokens_in_pool(w, contexts))) == 1, "the piece that was under way"


def test_what_is_in_the_pool_already_is_not_read_again_and_what_needs_the_room_gets_it() -> None:
    w, contexts = started_again()
    w.call(contexts[0], 0, 1)
    w.settle()
    n = len(w.pool)
    expect(w, *contexts)
    w.settle()
    assert sum(len(action.keys) for action in fetched(w)) == 20 - n
    w.send(ev.BudgetChanged(pool_bytes=w.planner.pool_used))
    w.call(w.open(), 300, 0)
    w.settle()
    assert sum(tokens_in_pool(w, contexts)) < 1201 and w.planner.tally.chunks_unsaved == 0
