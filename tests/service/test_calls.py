"""Calls that wait, run together, are cancelled, refused or ended by the service's stop."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from llmaas import errors
from llmaas.calls import CallSpec, Generation, Turn
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house

TEXT = "All happy families are alike; every unhappy family is unhappy in its own way. "


@on_a_loop
async def test_a_cancelled_answer_keeps_what_was_streamed_and_one_without_tokens_leaves_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"step_time": lambda n: 0.002}) as h:
        await h.service.create(APP, name="x", system=None)
        pieces: list[str] = []
        request, future = h.service.submit(
            APP, "x", CallSpec(Turn((Message("user", "go"),)), Generation(500)), lambda p: pieces.append(p.text)
        )
        while len(pieces) < 5:
            await asyncio.sleep(0.001)
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled) as e:
            await future
        assert e.value.n_generated >= 5
        assert h.service.show(APP, "x").messages[-1].content == "".join(pieces)
        before = h.tokens("x")
        request, future = h.service.submit(
            APP, "x", CallSpec(Turn((Message("user", TEXT * 4),)), Generation(5)), pieces.append
        )
        await asyncio.sleep(0)
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled):
            await future
        assert h.tokens("x") == before
        assert len((await h.say("x", "and?", 5))[0]) > 0


@on_a_loop
async def test_calls_of_many_contexts_run_together_and_calls_of_one_run_in_order(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 600, "step_time": lambda n: 0.001}) as h:
        for i in range(6):
            await h.service.create(APP, name=f"c{i}", system=None)
        jobs = [h.say(f"c{i}", f"{i} {j} {TEXT[:60]}", 10) for j in range(2) for i in range(6)]
        await asyncio.gather(*jobs)
        for i in range(6):
            messages = h.service.show(APP, f"c{i}").messages
            assert [m.content[:3] for m in messages if m.role == "user"] == [f"{i} 0", f"{i} 1"]


@on_a_loop
async def test_more_calls_than_the_queue_holds_are_refused_as_busy(tmp_path: Path) -> None:
    async with house(tmp_path, queue_limit=2) as h:
        await h.service.create(APP, name="x", system=None)
        jobs = [asyncio.create_task(h.say("x", "a", 3)) for _ in range(3)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(r) for r in results].count(errors.Busy) == 1


@on_a_loop
async def test_stopping_ends_running_calls_as_shutting_down_and_keeps_their_tokens(tmp_path: Path) -> None:
    kept = ""
    async with house(tmp_path, engine={"step_time": lambda n: 0.002}) as h:
        await h.service.create(APP, name="x", system=None)
        pieces: list[str] = []
        spec = CallSpec(Turn((Message("user", "go"),)), Generation(500))
        _, future = h.service.submit(APP, "x", spec, lambda p: pieces.append(p.text))
        while not pieces:
            await asyncio.sleep(0.001)
        await h.service.stop()
        with pytest.raises(errors.ShuttingDown):
            await future
        kept = h.service.show(APP, "x").messages[-1].content
        with pytest.raises(errors.ShuttingDown):
            await h.say("x", "more", 3)
    async with house(tmp_path) as h:
        assert kept and (await h.shown("x")).messages[-1].content == kept


@on_a_loop
async def test_a_hint_brings_a_context_back_before_it_is_called_and_no_call_waits_for_it(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 700}) as h:
        for name in ("first", "second"):
            await h.service.create(APP, name=name, system=None)
            await h.say(name, f"{name} " * 60)
            await h.service.wait_idle()
        before = h.service.info(APP, "first")
        assert before.tiers[0] == 0
        h.service.hint(APP, "first")
        await h.service.wait_idle()
        after = h.service.info(APP, "first")
        assert after.tiers[0] == after.n_tokens == before.n_tokens
        assert after.last_used == before.last_used and h.tokens("first")
        _, done = await h.say("first", "at last")
        assert done.switch.cells > 300 and not (done.switch.pool or done.switch.disk or done.switch.recomputed)
        for name in ("second", "first", "second"):  # hints under way when calls come
            h.service.hint(APP, name)
            h.service.hint(APP, "first")
            await asyncio.sleep(0)
            await h.say(name, "and now?")


@on_a_loop
async def test_hints_again_and_again_do_nothing_while_the_context_is_all_in_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, engine={"n_cells": 700}) as h:
        for name in ("first", "second"):
            await h.service.create(APP, name=name, system=None)
        await h.say("first", "first " * 60)
        assert h.service.hint(APP, "first") is not None, "the last token of the answer is not in CELLS"
        await h.service.wait_idle()
        assert [h.service.hint(APP, "first") for _ in range(3)] == [None] * 3
        monkeypatch.setattr("llmaas.service.runner.HINT_AGAIN_S", 0)
        assert h.service.hint(APP, "first") is not None, "it leaves CELLS later for that"
        await h.service.wait_idle()
        monkeypatch.undo()
        await h.say("second", "second " * 60)
        await h.service.wait_idle()
        assert h.service.info(APP, "first").tiers[0] == 0
        assert h.service.hint(APP, "first") is not None, "it has left CELLS"
        await h.service.wait_idle()
        assert h.service.info(APP, "first").tiers[0] > 0


@on_a_loop
async def test_calls_that_are_cancelled_leave_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    """It would have to find them, and stops everything for that: 90 ms after some thousand calls."""
    async with house(tmp_path, engine={"step_time": lambda n: 0.001}) as h:
        await h.service.create(APP, name="x", system=None)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                spec = CallSpec(Turn(prompt=TEXT), Generation(500))
                calls = [h.service.submit(APP, "x", spec, lambda piece: None) for _ in range(20)]
                await asyncio.sleep(0.02)  # one runs, and the others wait for their context
                for request, _ in calls:
                    h.service.cancel(request)
                ended = await asyncio.gather(*(reply for _, reply in calls), return_exceptions=True)
                assert {type(error) for error in ended} == {errors.Cancelled}
                await h.service.wait_idle()
                await asyncio.sleep(0.01)
                del calls, ended
            assert gc.collect() < 200, "of sixty calls"
        finally:
            gc.enable()
