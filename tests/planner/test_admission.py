from __future__ import annotations

import pytest

from llmaas.planner import actions as act
from llmaas.planner import events as ev
from llmaas.records import AppId, RequestId
from tests.support.planner_world import ADAPTER_BYTES, APP, Ctx, World, run_call, world


def quiet(seed: int = 0, **changes: object) -> World:
    """A world whose steps take a millisecond or two, and whose answers never end early."""
    w = world(seed, **changes)
    w.tick = 0.002
    w.rng.choices = lambda *a, **k: [ev.Drawn.TOKEN]  # type: ignore[method-assign,assignment]
    return w


def steps(w: World) -> list[act.RunStep]:
    return [a for _, actions in w.log for a in actions if isinstance(a, act.RunStep)]


def admitted(w: World) -> list[int]:
    return [a.request for _, actions in w.log for a in actions if isinstance(a, act.Admitted)]


def paused(w: World) -> list[int]:
    return [a.request for _, actions in w.log for a in actions if isinstance(a, act.Paused)]


def until(w: World, kind: type, n: int = 1) -> None:
    """Answer, step first, until so many more actions of this kind were asked for."""
    asked = sum(isinstance(a, kind) for _, actions in w.log for a in actions) + n
    for _ in range(1000):
        if sum(isinstance(a, kind) for _, actions in w.log for a in actions) >= asked:
            return
        w.answer_one(0)
    raise AssertionError(f"no {kind.__name__} in a thousand answers")


def filled(w: World, n: int) -> Ctx:
    ctx = w.open()
    run_call(w, ctx, n, 0)
    return ctx


def test_the_urgent_have_the_step_to_themselves_and_the_others_go_on_where_they_were() -> None:
    w = quiet()
    slow = w.call(w.open(), 90, 40, priority=8)
    until(w, act.RunStep, 5)
    urgent = w.call(w.open(), 20, 10, priority=0)
    before = len(steps(w))
    w.settle()
    of_urgent = [i for i, s in enumerate(steps(w)) if any(item.request == urgent for item in s.items)]
    assert of_urgent[0] <= before
    assert all(len(s.items) == 1 for s in steps(w)[of_urgent[0] : of_urgent[-1] + 1])
    assert w.finished[slow].outcome is act.Outcome.LENGTH
    assert w.planner.tally.tokens_prefilled == 110 and w.planner.tally.pauses == 0


def test_a_long_step_of_whoever_is_alone_is_aborted_for_who_comes_and_nothing_else_is() -> None:
    w = quiet()
    w.tick = 2.0  # a step of 100 tokens takes about a second
    w.call(w.open(), 1000, 0, priority=8)
    until(w, act.RunStep, 4)
    assert steps(w)[-1].items[0].stop - steps(w)[-1].items[0].start == 100
    urgent = w.call(w.open(), 5, 2, priority=1)
    assert isinstance(w.log[-1][1][-1], act.AbortStep) or any(isinstance(a, act.AbortStep) for a in w.log[-1][1])
    w.aborted.add(steps(w)[-1].step)
    w.rng.random = lambda: 0.1  # type: ignore[method-assign]
    until(w, act.RunStep)
    assert [item.request for item in steps(w)[-1].items] == [urgent]
    w.settle()
    assert w.planner.tally.steps_aborted == 1 and not w.planner.check()


def test_a_prompt_leaves_steps_short_beside_those_who_decode() -> None:
    w = quiet(step_target=0.05, max_batch=512, prefill_slice=256)
    w.token_s = 0.001
    w.call(w.open(), 20, 200, priority=5)
    until(w, act.RunStep, 4)
    w.call(w.open(), 700, 0, priority=5)
    until(w, act.RunStep, 12)
    slices = [s.items[1].stop - s.items[1].start for s in steps(w) if len(s.items) == 2]
    assert len(slices) > 5 and all(n in range(16, 65) for n in slices)
    assert max(slices[4:]) >= 32


def test_a_place_is_given_up_at_the_end_of_a_turn_only_and_answers_take_turns() -> None:
    w = quiet(max_running=1, quantum=8)
    first, second = w.call(w.open(), 10, 30, priority=5), w.call(w.open(), 10, 30, priority=5)
    w.settle()
    assert admitted(w)[:4] == [first, second, first, second]
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in (first, second))
    assert w.planner.tally.tokens_generated == 60 and w.planner.tally.tokens_prefilled == 20


def test_the_urgent_take_the_only_place_at_once() -> None:
    w = quiet(max_running=1, quantum=1000)
    slow = w.call(w.open(), 10, 100, priority=8)
    until(w, act.RunStep, 3)
    urgent = w.call(w.open(), 10, 5, priority=1)
    w.settle()
    assert admitted(w) == [slow, urgent, slow] and paused(w) == [slow]


def test_more_contexts_than_fit_take_turns_and_nothing_is_computed_twice() -> None:
    w = quiet(quantum=16, pool_bytes=1 << 30)
    contexts = [filled(w, 300) for _ in range(6)]  # 1800 tokens for 1024 cells
    computed = w.planner.tally.tokens_prefilled
    calls = [w.call(ctx, 0, 60, priority=5) for ctx in contexts]
    w.settle()
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in calls)
    assert w.planner.tally.pauses >= 6
    assert w.planner.tally.tokens_recomputed == 0
    # the last token of a context has to be computed for its logits: 300 of a call that gets no new prompt has one
    assert w.planner.tally.tokens_prefilled <= computed + 6 * 64
    assert not w.planner.check()


def test_one_answer_may_fill_all_cells_while_others_wait_for_theirs() -> None:
    w = quiet(quantum=16, pool_bytes=1 << 30, n_cells=512, ctx_limit=512)
    long = w.call(w.open(), 10, 480, priority=5)
    others = [w.call(w.open(), 100, 30, priority=5) for _ in range(4)]
    w.settle()
    assert w.finished[long].outcome is act.Outcome.LENGTH
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in others)
    assert not w.planner.check()


def test_who_was_paused_last_leaves_the_cells_first() -> None:
    """Those that wait come back in the order in which they were paused."""
    w = quiet(quantum=8, max_running=1, pool_bytes=1 << 30)
    contexts = [filled(w, 250) for _ in range(4)]
    calls = [w.call(ctx, 0, 60, priority=5) for ctx in contexts]
    for _ in range(4):
        until(w, act.Paused)
    w.settle()
    left = w.planner.tally.contexts_left_cells
    turns = len(admitted(w)) - 4
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in calls)
    assert left < turns, "least recently run first would lose one context per turn"


def test_a_deadline_ends_a_call_that_waits_and_one_that_runs() -> None:
    w = quiet(max_running=1, quantum=1000)
    runs = w.call(w.open(), 10, 500, priority=5, deadline=w.now + 0.05)
    waits = w.call(w.open(), 10, 5, priority=5, deadline=w.now + 0.01)
    w.settle()
    assert w.finished[waits].outcome is w.finished[runs].outcome is act.Outcome.EXPIRED
    assert w.finished[runs].n_kv > 10, "it generated until then"
    assert w.planner.tally.expired == 2 and not w.planner.check()


def test_a_deadline_that_is_met_is_forgotten() -> None:
    w = quiet()
    request = w.call(w.open(), 10, 0, deadline=w.now + 100.0)
    while request not in w.finished:
        w.answer_one(0)
    assert w.finished[request].outcome is act.Outcome.APPENDED
    w.settle()
    assert w.planner.idle and w.planner.tally.expired == 0


def test_a_priority_that_changes_counts_at_once() -> None:
    w = quiet(max_running=1, quantum=1000)
    slow = w.call(w.open(), 10, 100, priority=5)
    until(w, act.RunStep, 3)
    other = w.call(w.open(), 10, 5, priority=7)
    w.send(ev.PriorityChanged(other, 2))
    w.settle()
    assert admitted(w) == [slow, other, slow]


@pytest.mark.parametrize("who", ["call", "app", "all"])
def test_a_limit_is_held_whoever_it_is_for(who: str) -> None:
    w = quiet()
    if who != "call":
        w.send(ev.RateChanged(APP if who == "app" else None, 20.0))
    began = w.now
    calls = [w.call(w.open(), 1, 50, priority=5, rate=20.0 if who == "call" else None) for _ in range(2)]
    w.settle()
    seconds, tokens = w.now - began, 100 if who != "call" else 50
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in calls)
    assert tokens / seconds == pytest.approx(20.0, rel=0.1)


def test_the_limited_do_not_hold_up_the_others() -> None:
    w = quiet()
    slow = w.call(w.open(), 1, 20, priority=1, rate=1.0)
    fast = w.call(w.open(), 1, 100, priority=8)
    while fast not in w.finished:
        w.answer_one(0)
    assert slow not in w.finished and w.now < 5.0
    w.settle()
    assert w.now > 15.0


def test_a_duty_lets_the_engine_rest() -> None:
    w = quiet()
    w.send(ev.DutyChanged(0.25))
    w.call(w.open(), 100, 100, priority=5)
    began, busy = w.now, 0.0
    while w.due:
        action, before = w.due[0], w.now
        w.answer_one(0)
        busy += (w.now - before) if isinstance(action, act.RunStep) else 0.0
    assert busy / (w.now - began) < 0.4


def test_a_step_holds_calls_of_one_adapter_and_adapters_take_turns() -> None:
    w = quiet()
    calls = [w.call(w.open(), 5, 40, priority=5, adapter=name) for name in ("", "a", "a")]
    w.settle()
    kind = {calls[0]: "", calls[1]: "a", calls[2]: "a"}
    for s in steps(w):
        assert {kind[item.request] for item in s.items} == {s.adapter}
    order = [s.adapter for s in steps(w)]
    longest = max(len(list(run)) for run in _runs(order[2:-12]))
    assert longest <= 2, order


def test_calls_whose_adapters_have_no_room_together_take_turns_and_the_bare_model_waits_for_nobody() -> None:
    w = quiet(adapter_bytes=2 * ADAPTER_BYTES, max_running=8, quantum=8)
    bare = w.call(w.open(), 5, 200, priority=5)
    calls = [w.call(w.open(), 5, 40, priority=5, adapter=name) for name in "aabbccdd"]
    w.settle()
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in (bare, *calls))
    assert bare not in paused(w)
    firsts = [next(n for n, s in enumerate(steps(w)) if any(i.request == call for i in s.items)) for call in calls]
    assert max(firsts) < 100, "nobody waits until another has ended"
    assert w.planner.tally.tokens_recomputed == 0 and not w.planner.check()


def test_a_call_that_waits_for_room_for_its_adapter_has_a_deadline_and_can_be_cancelled() -> None:
    w = quiet(adapter_bytes=ADAPTER_BYTES, quantum=10_000)
    runs = w.call(w.open(), 5, 300, priority=5, adapter="a")
    late = w.call(w.open(), 5, 5, priority=5, deadline=w.now + 0.05, adapter="b")
    cancelled = w.call(w.open(), 5, 5, priority=5, adapter="b")
    until(w, act.RunStep, 5)
    w.send(ev.CancelRequested(cancelled))
    w.settle()
    assert w.finished[late].outcome is act.Outcome.EXPIRED
    assert w.finished[cancelled].outcome is act.Outcome.CANCELLED
    assert w.finished[runs].outcome is act.Outcome.LENGTH and admitted(w) == [runs]


def test_an_adapter_larger_than_all_the_room_waits_for_no_other_only() -> None:
    w = quiet(adapter_bytes=ADAPTER_BYTES // 2)
    calls = [w.call(w.open(), 5, 20, priority=5, adapter=name) for name in "ab"]
    w.settle()
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in calls)


def _runs(order: list[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for name in order:
        if found and found[-1][0] == name:
            found[-1].append(name)
        else:
            found.append([name])
    return found


def test_a_cancelled_prompt_ends_with_its_step_and_the_step_at_once() -> None:
    w = quiet()
    request = w.call(w.open(), 1000, 0)
    w.send(ev.CancelRequested(request))
    assert any(isinstance(a, act.AbortStep) for a in w.log[-1][1])
    w.settle()
    assert w.finished[request].outcome is act.Outcome.CANCELLED and not w.planner.check()


def test_a_paused_call_can_be_cancelled() -> None:
    w = quiet(max_running=1, quantum=1000)
    slow = w.call(w.open(), 10, 100, priority=8)
    until(w, act.RunStep, 3)
    w.call(w.open(), 10, 50, priority=1)
    until(w, act.Paused)
    w.send(ev.CancelRequested(RequestId(slow)))
    w.settle()
    assert w.finished[slow].outcome is act.Outcome.CANCELLED and not w.planner.check()


def test_a_limit_of_somebody_who_is_away_slows_nobody() -> None:
    w = quiet()
    w.send(ev.RateChanged(AppId("0/other"), 1.0))
    w.call(w.open(), 5, 100, priority=5)
    w.settle()
    assert max(s.burst for s in steps(w)) > 1


def test_no_step_of_a_model_whose_state_cannot_be_cut_is_aborted_so_none_is_long() -> None:
    w = quiet(swappable=False)
    w.tick = 2.0  # a step of 100 tokens takes about a second
    slow = w.call(w.open(), 1000, 0, priority=8)
    until(w, act.RunStep, 4)
    assert all(item.stop - item.start <= 16 for step in steps(w)[1:] for item in step.items), "it is alone"
    urgent = w.call(w.open(), 5, 2, priority=1)
    until(w, act.RunStep)
    assert [item.request for item in steps(w)[-1].items] == [urgent]
    w.settle()
    assert w.finished[slow].outcome is act.Outcome.APPENDED and w.finished[urgent].outcome is act.Outcome.LENGTH
    cancelled = w.call(w.open(), 1000, 0)
    until(w, act.RunStep)
    w.send(ev.CancelRequested(cancelled))
    w.settle()
    assert w.finished[cancelled].outcome is act.Outcome.CANCELLED
    assert not any(isinstance(a, act.AbortStep) for _, actions in w.log for a in actions) and not w.planner.check()


def test_calls_of_equal_apps_do_not_push_each_other_out_without_end() -> None:
    """Sixteen calls of four apps for eight places, while each step takes as long as many other answers."""
    w = quiet(n_cells=8192, ctx_limit=4096, n_seqs=40, max_batch=512, prefill_slice=256, max_running=8)
    w.tick, w.token_s = 1e-3, 1e-4
    live: list[RequestId] = []
    for i in range(600):
        live = [request for request in live if request not in w.finished]
        while len(live) < 16:
            live.append(w.call(w.open(AppId(f"0/{w.serial % 4}")), w.rng.randint(20, 300), 32, priority=5))
        others = [k for k, action in enumerate(w.due) if not isinstance(action, act.RunStep)]
        w.answer_one(others[0] if others and i % 20 else 0)
    assert len(w.finished) > 40
    assert len(paused(w)) < 3 * len(w.finished)
