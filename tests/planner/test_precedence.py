"""Whose prompt goes first, and which step is aborted for a call that comes."""

from __future__ import annotations

import random

from llmaas.planner import actions as act
from llmaas.planner.events import CancelRequested, Drawn
from llmaas.records import AppId, RequestId
from tests.support.planner_world import World, world

MANY, FEW = AppId("0/many"), AppId("0/few")
TOKEN_S = 0.001


def busy(seed: int = 0, **changes: object) -> World:
    """A world whose answers never end early, and which knows that a token of a prompt takes a millisecond."""
    settings = {"max_batch": 512, "prefill_slice": 256, "step_target": 0.1, "max_running": 6, "n_seqs": 8}
    w = world(seed, **{"n_cells": 4096, "ctx_limit": 2048, **settings, **changes})
    w.tick, w.token_s = 1e-6, TOKEN_S
    w.rng.choices = lambda *a, **k: [Drawn.TOKEN]  # type: ignore[method-assign,assignment]
    for _ in range(8):
        call(w, AppId("0/before"), 200, 0)
        w.settle()
    w.now += 60.0  # what was served before is long ago
    return w


def steps(w: World) -> list[act.RunStep]:
    return [a for _, actions in w.log for a in actions if isinstance(a, act.RunStep)]


def aborts(w: World) -> int:
    return sum(isinstance(a, act.AbortStep) for _, actions in w.log for a in actions)


def read(step: act.RunStep) -> dict[int, int]:
    """Tokens of prompts in a step, by request."""
    return {item.request: item.stop - item.start for item in step.items if item.stop - item.start > 1}


def call(w: World, app: AppId, tokens: int, max_new: int, priority: int = 5) -> RequestId:
    return w.call(w.open(app), tokens, max_new, priority=priority)


def end_step(w: World) -> act.RunStep | None:
    """The step ends; the one that follows."""
    n = len(steps(w))
    w.answer_one(next(i for i, a in enumerate(w.due) if isinstance(a, act.RunStep)))
    return steps(w)[n] if len(steps(w)) > n else None


def flooded(**changes: object) -> tuple[World, list[RequestId]]:
    """20 ms ago, one app's three long prompts began to share a step of 100 ms."""
    w = busy(**changes)
    many = [call(w, MANY, 400, 2) for _ in range(3)]
    end_step(w)
    assert sum(read(steps(w)[-1]).values()) > 80
    w.now += 0.02
    return w, many


def test_a_short_prompt_of_who_takes_little_goes_before_the_many_of_another_app() -> None:
    w = busy(swappable=False)  # nothing is aborted here
    many = [call(w, MANY, 200, 8) for _ in range(4)]
    few = call(w, FEW, 60, 8)
    step = end_step(w)
    assert step is not None
    assert read(step)[few] == 60 and len(read(step)) == 1, "60 of 100 ms: no room is left for the others"
    w.settle()
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in (*many, few)) and not w.planner.check()


def test_what_little_time_is_left_in_such_a_step_is_for_the_others() -> None:
    w = busy(swappable=False)
    many = [call(w, MANY, 200, 8) for _ in range(4)]
    few = call(w, FEW, 8, 8)
    step = end_step(w)
    assert step is not None
    assert read(step)[few] == 8 and 0 < sum(n for r, n in read(step).items() if r in many) <= 17


def test_apps_that_take_alike_share_steps() -> None:
    w = busy()
    calls = [call(w, AppId(f"0/{i}"), 24, 2) for i in range(5)]
    step = end_step(w)
    assert step is not None and len(read(step)) == 4
    w.settle()
    assert aborts(w) == 0 and all(w.finished[r].outcome is act.Outcome.LENGTH for r in calls)


def test_the_step_of_who_takes_much_is_aborted_for_a_short_call_and_nothing_is_computed_twice() -> None:
    w, many = flooded()
    before = aborts(w)
    few = call(w, FEW, 60, 2)
    assert aborts(w) == before + 1
    w.rng.random = lambda: 0.1  # type: ignore[method-assign]  # the abort is in time
    step = end_step(w)
    assert step is not None and read(step) == {few: 60}
    w.rng = random.Random(1)
    w.rng.choices = lambda *a, **k: [Drawn.TOKEN]  # type: ignore[method-assign,assignment]
    w.settle()
    assert all(w.finished[r].outcome is act.Outcome.LENGTH for r in (*many, few)) and not w.planner.check()
    done = w.planner.tally.tokens_prefilled
    assert done == 8 * 200 + 3 * 400 + 60


def test_no_step_is_aborted_for_a_long_prompt_or_the_same_app_or_when_it_is_nearly_over() -> None:
    for app, tokens, more in ((FEW, 900, 0.0), (MANY, 60, 0.0), (FEW, 60, 0.07)):
        w, _ = flooded()
        before = aborts(w)
        w.now += more
        call(w, app, tokens, 2)
        assert aborts(w) == before, (app, tokens, more)


def test_no_step_is_aborted_where_a_sequence_cannot_be_cut_or_for_who_is_less_urgent() -> None:
    changes: dict[str, object]
    for changes, priority in (
        ({"swappable": False}, 5),
        ({"rules": 1}, 5),
        ({"scheduling": "fifo"}, 5),
        ({}, 6),
    ):
        w, _ = flooded(**changes)
        before = aborts(w)
        call(w, FEW, 60, 2, priority)
        assert aborts(w) == before, (changes, priority)


def test_who_asks_and_goes_is_charged_for_what_was_computed_meanwhile() -> None:
    w = busy()
    w.rng.random = lambda: 0.1  # type: ignore[method-assign]  # each abort is in time
    for _ in range(10):
        gone = call(w, MANY, 400, 2)
        w.now += 0.02
        w.send(CancelRequested(gone))
        end_step(w)
        w.settle()
        assert w.finished[gone].outcome is act.Outcome.CANCELLED
    call(w, AppId("0/other"), 60, 0)
    call(w, MANY, 60, 2)
    few = call(w, FEW, 60, 2)
    step = end_step(w)
    assert step is not None and read(step) == {few: 60}


def test_steps_that_are_aborted_take_a_small_part_of_the_time_however_many_apps_come() -> None:
    """Each name comes once, with a short prompt, in the midst of a step of a long one."""
    w = busy(n_cells=40_000, ctx_limit=20_000)
    call(w, AppId("0/before"), 200, 0)
    call(w, MANY, 18_000, 0)
    begun, lost = w.now, 0.0
    for n in range(300):
        w.now += 0.05
        seen = aborts(w)
        call(w, AppId(f"0/{n}"), 20, 1)
        lost += 0.05 * (aborts(w) - seen)
        for _ in range(3):
            if w.due:
                w.answer_one(0)
    assert aborts(w) > 2
    assert lost <= 0.2 + 0.05 * (w.now - begun)


def test_a_prompt_that_ends_with_the_step_is_put_off_once_whoever_comes() -> None:
    w = busy()
    call(w, FEW, 500, 2)
    w.settle()
    call(w, FEW, 1, 500)
    few, before = call(w, FEW, 80, 2), aborts(w)
    while few not in read(steps(w)[-1]):
        end_step(w)
    w.rng.random = lambda: 0.1  # type: ignore[method-assign]  # each abort is in time
    for n in range(6):
        w.now += 0.01
        call(w, AppId(f"0/{n}"), 20, 0)
        if steps(w)[-1].step in w.aborted:
            end_step(w)
        while few not in read(steps(w)[-1]):
            end_step(w)
    assert aborts(w) == before + 1


def test_the_first_token_of_an_apps_only_call_is_not_put_off() -> None:
    for others in (0, 1):
        w = busy()
        call(w, MANY, 500, 0)
        call(w, AppId("0/other"), 1, 0)
        w.settle()
        w.now += 10.0  # that is too long ago for short steps
        for _ in range(others):
            call(w, MANY, 1, 200)
            end_step(w)
        due, before = call(w, MANY, 60, 2), aborts(w)
        while due not in read(steps(w)[-1]):
            end_step(w)
        w.now += 0.01
        call(w, FEW, 20, 2)
        assert aborts(w) == before + others


def test_an_app_whose_calls_wait_to_be_admitted_has_more_than_one() -> None:
    w = busy(n_seqs=3)
    call(w, MANY, 500, 0)
    call(w, AppId("0/other"), 1, 0)
    w.settle()
    held = [call(w, AppId(f"0/{n}"), 1, 300, priority=0) for n in range(2)]
    end_step(w)
    due = call(w, MANY, 60, 2)
    call(w, MANY, 60, 2)
    assert held and w.planner.waiting
    while due not in read(steps(w)[-1]):
        end_step(w)
    w.now += 0.01
    before = aborts(w)
    call(w, FEW, 20, 2)
    assert aborts(w) == before + 1


def test_an_apps_only_call_is_in_one_step_with_prompts_of_some_tokens() -> None:
    for others, together in ((0, True), (1, False)):
        w = busy(swappable=False)
        call(w, MANY, 500, 0)
        call(w, AppId("0/other"), 1, 0)
        w.settle()
        call(w, AppId("0/other"), 40, 0)  # its step runs while the others come
        for _ in range(others):
            call(w, MANY, 300, 2)
        many, few = call(w, MANY, 60, 2), call(w, FEW, 4, 2)
        step = end_step(w)
        assert step is not None and read(step)[few] == 4
        assert (read(step).get(many) == 60) is together


def test_who_asks_in_short_does_not_keep_out_long_prompts() -> None:
    """An app whose short prompts never end leaves the other app its part of the engine."""
    w = busy(n_cells=40_000, ctx_limit=20_000)
    long = [call(w, MANY, 2_000, 0) for _ in range(2)]
    waiting = [call(w, FEW, 60, 1) for _ in range(2)]
    for _ in range(2000):
        if all(request in w.finished for request in long):
            break
        w.answer_one(0)
        for i, request in enumerate(waiting):
            if request in w.finished:
                waiting[i] = call(w, FEW, 60, 1)
    assert all(request in w.finished for request in long)
    found: dict[bool, int] = {True: 0, False: 0}
    for step in steps(w):
        for request, n in read(step).items():
            found[request in long] += n
    assert found[True] > 0.3 * sum(found.values()), found


def beside_a_flood(since: float, n_calls: int = 3, **changes: object) -> act.RunStep:
    """The last step of an app with several long prompts, ``since`` seconds after another app was served."""
    w = busy(**changes)
    call(w, FEW, 60, 8)
    w.settle()
    w.now += since
    for _ in range(n_calls):
        call(w, MANY, 1200 // n_calls, 2)
    for _ in range(2):
        end_step(w)
    return steps(w)[-1]


def test_steps_are_short_beside_a_flood_while_another_app_may_come_back() -> None:
    assert sum(read(beside_a_flood(since=0.2)).values()) <= 16
    assert sum(read(beside_a_flood(since=20.0)).values()) > 80, "that was long ago"
    assert sum(read(beside_a_flood(since=0.2, n_calls=1)).values()) > 80, "one call is no flood"
    assert sum(read(beside_a_flood(since=0.2, rules=1)).values()) > 80


def test_a_step_is_half_as_long_again_if_a_prompt_ends_then() -> None:
    for tokens, at_once in ((140, True), (170, False)):
        w = busy(swappable=False)
        call(w, MANY, 1, 50)
        one = call(w, FEW, tokens, 2)
        step = end_step(w)
        assert step is not None and (read(step)[one] == tokens) is at_once


def rows(step: act.RunStep) -> set[RequestId]:
    """The calls that decode in a step."""
    return {item.request for item in step.items if item.sample and item.stop - item.start == 1}


def answering(app: AppId, n: int, tokens: int) -> tuple[World, list[RequestId]]:
    """``n`` calls of an app decode, after prompts of so many tokens each."""
    w = busy(max_running=10, n_seqs=12, swappable=False)
    calls = [call(w, app, tokens, 200) for _ in range(n)]
    while len(rows(steps(w)[-1])) < n:
        end_step(w)
    return w, calls


def test_of_an_app_with_many_answers_some_decode_beside_anothers_prompt() -> None:
    w, many = answering(MANY, 8, 100)
    few = call(w, FEW, 100, 2)
    step = end_step(w)
    assert step is not None and few in read(step) and len(rows(step)) == 4
    step = end_step(w)
    assert step is not None and rows(step) == {*many, few}, "they were left out of one step only"


def test_the_answers_of_who_takes_little_all_decode_beside_anothers_prompts() -> None:
    w, few = answering(FEW, 6, 4)
    long = call(w, MANY, 900, 2)
    step = end_step(w)
    while step is not None and long not in read(step):
        step = end_step(w)
    assert step is not None and rows(step) == set(few)
