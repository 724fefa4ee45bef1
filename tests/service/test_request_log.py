"""The reports of calls: who asked, and where the time went."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import CallSpec, Generation, Turn
from llmaas.errors import BadRequest, UnknownRequest
from llmaas.records import AppId, Message, RequestInfo
from llmaas.service.request_log import N_ENDED
from llmaas.service.service import Service
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house

OTHER = AppId("1000/other")


def reports(service: Service, app: AppId | None = APP, after: int = 0, last: int | None = None) -> list[RequestInfo]:
    return [info for _, info in service.requests_after(app, after, last)]


def names(info: RequestInfo) -> list[str]:
    return [span.name for span in info.spans]


@on_a_loop
async def test_a_call_that_has_ended_tells_where_its_time_went(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.service.create(APP, name="a", system="You are brief.")
        _, done = await home.say("a", "Hello?", 5)
        (info,) = reports(home.service)
        assert (info.name, info.op, info.state, info.outcome) == ("a", "generate", "ended", done.reason.value)
        assert (info.n_prompt, info.n_generated, info.priority) == (done.n_prompt, done.n_generated, 5)
        assert names(info) == ["queued", "prefill", "decode", "commit"]
        assert are_in_order(info)
        by_name = {span.name: span for span in info.spans}
        assert by_name["queued"].end_ms == pytest.approx(done.queue_ms, abs=1e-6)
        assert by_name["prefill"].end_ms == pytest.approx(done.ttft_ms, abs=1e-6)


@on_a_loop
async def test_loads_from_the_pool_are_spans_of_their_own(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 512}) as home:
        for name in ("a", "b"):
            await home.service.create(APP, name=name, system=None)
            await home.say(name, "word " * 60, 2)
        await home.service.wait_idle()
        _, done = await home.say("a", "And now?", 2)
        assert done.switch.pool > 0, "the other context pushed it out of the cells"
        spans = [span for span in reports(home.service)[-1].spans if span.name == "pool"]
        assert sum(span.tokens for span in spans) >= done.switch.pool


@on_a_loop
async def test_a_call_that_fails_says_with_which_code(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.service.create(APP, name="a", system=None)
        with pytest.raises(BadRequest):
            await home.call("a", Turn(), Generation(4))
        assert [info.outcome for info in reports(home.service)] == ["bad_request"]


def are_in_order(info: RequestInfo) -> bool:
    return all(span.end_ms is not None and 0 <= span.start_ms <= span.end_ms for span in info.spans)


@on_a_loop
async def test_spans_of_an_answer_that_goes_on_are_of_the_call_that_goes_on(tmp_path: Path) -> None:
    """It has its first tokens before it is admitted."""
    spec = CallSpec(Turn((Message("user", "Hello?"),)), Generation(300), idempotency_key="k")
    async with house(tmp_path, engine={"step_time": lambda n: 0.002}) as home:
        await home.service.create(APP, name="a", system=None)
        told: list[int] = []
        call, future = home.service.submit(APP, "a", spec, lambda piece: told.extend(piece.tokens))
        while len(told) < 5 and not future.done():
            await asyncio.sleep(0.001)
        home.service.cancel(call)
        await asyncio.gather(future, return_exceptions=True)
        _, future = home.service.submit(APP, "a", spec, lambda piece: None)
        await future
        first, second = reports(home.service)
        assert (first.outcome, second.n_generated) == ("cancelled", 300)
        assert names(first) == names(second) == ["queued", "prefill", "decode", "commit"]
        assert are_in_order(first) and are_in_order(second)
        assert second.spans[2].tokens == 300 - first.n_generated


@on_a_loop
async def test_a_call_that_computes_again_after_a_pause_has_its_spans_in_order(tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": {"n_cells": 512}, "quantum": 10, "pool_bytes": 0}
    async with house(tmp_path, **options) as home:
        for name in "abcd":
            await home.service.create(APP, name=name, system=None)
        said = await asyncio.gather(*(home.say(name, f"{name} " * 60, 60) for name in "abcd"))
        paused = [done for _, done in said if done.n_paused and done.switch.recomputed]
        assert paused, "each is to have computed again what had no room"
        assert all(map(are_in_order, reports(home.service)))


@on_a_loop
async def test_calls_that_wait_or_run_are_listed_and_can_be_found_by_their_app(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        service = home.service
        await service.create(APP, name="a", system=None)
        spec = CallSpec(Turn((Message("user", "Hello?"),)), Generation(100_000))
        begun = asyncio.Event()
        call, future = service.submit(APP, "a", spec, lambda piece: begun.set())
        second, waiting = service.submit(APP, "a", spec, lambda piece: None)
        await begun.wait()
        first, other = reports(service)
        assert (first.call, first.state, other.call, other.state) == (call, "running", second, "waiting")
        assert names(first)[-1] == "decode" and first.spans[-1].end_ms is None
        assert reports(service, OTHER) == [] and len(reports(service, None)) == 2
        assert [info.call for info in reports(service, APP, after=call)] == [second]
        for app in (APP, None):
            assert service.find_call(app, call) == call
        with pytest.raises(UnknownRequest):
            service.find_call(OTHER, call)
        for each in (call, second):
            service.cancel(each)
        await asyncio.gather(future, waiting, return_exceptions=True)
        assert [info.outcome for info in reports(service)] == ["cancelled", "cancelled"]
        with pytest.raises(UnknownRequest):
            service.find_call(APP, call)


@on_a_loop
async def test_what_is_kept_of_calls_that_have_ended_is_bounded(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.service.create(APP, name="a", system=None)
        for _ in range(N_ENDED + 10):
            with pytest.raises(BadRequest):
                await home.call("a", Turn(), Generation(1))
        found = reports(home.service)
        assert len(found) == N_ENDED and found[-1].call == N_ENDED + 10
        assert reports(home.service, last=3) == found[-3:] and reports(home.service, last=999) == found
        assert reports(home.service, after=N_ENDED + 9, last=3) == found[-1:]
        assert reports(home.service, OTHER, last=3) == []
