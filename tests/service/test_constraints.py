"""Grammars and schemas of calls: nobody waits for those of others, nor for one that takes long to read."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas import errors, fair_thread
from llmaas.calls import CallSpec, Done, Generation, Sampling, Turn
from llmaas.engine.constraint import compiler
from llmaas.engine.constraint.gbnf import read_gbnf
from llmaas.records import AppId, Message
from llmaas.service import constraints
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

OTHER = AppId("1000/other")


class SlowReading:
    """Reading grammars takes until ``go_on`` is set; those with "quick" in them are read at once."""

    def __init__(self) -> None:
        self.go_on, self.begun = threading.Event(), threading.Event()
        self.read: list[str] = []

    def __call__(self, text: str) -> object:
        self.read.append(text)
        if "quick" not in text:
            self.begun.set()
            assert self.go_on.wait(30)
        return read_gbnf(text)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowReading]:
    reading = SlowReading()
    monkeypatch.setattr(compiler, "read_gbnf", reading)
    yield reading
    reading.go_on.set()


def submit(h: House, context: str, grammar: str, app: AppId = APP) -> asyncio.Future[Done]:
    sampling = Sampling(grammar=f'root ::= "{grammar}"')
    spec = CallSpec(Turn((Message("user", "x"),)), Generation(20, sampling=sampling))
    return h.service.submit(app, context, spec, lambda piece: None)[1]


async def begun(reading: SlowReading) -> None:
    assert await asyncio.to_thread(reading.begun.wait, 10)


@on_a_loop
async def test_a_context_is_deleted_at_once_while_its_grammar_is_read(tmp_path: Path, slow: SlowReading) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        reply = submit(h, "x", "slow")
        await begun(slow)
        before = time.monotonic()
        await h.service.delete(APP, "x")
        assert time.monotonic() - before < 1.0 and not slow.go_on.is_set()
        with pytest.raises(errors.Cancelled):
            await reply


@on_a_loop
async def test_the_service_stops_while_grammars_are_read_and_wait(
    tmp_path: Path, slow: SlowReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "COMPILE_S", 0.5)
    async with house(tmp_path) as h:
        replies = []
        for i in range(20):
            await h.service.create(APP, name=f"x{i}", system=None)
            replies.append(submit(h, f"x{i}", f"slow{i}"))
        await begun(slow)
        before = time.monotonic()
        await h.service.stop()
        assert time.monotonic() - before < 5.0  # of the 10 s that all of them would take
        found = await asyncio.gather(*replies, return_exceptions=True)
        assert {type(reply) for reply in found} <= {errors.ShuttingDown, errors.BadRequest}


@on_a_loop
async def test_one_apps_grammars_do_not_keep_anothers_waiting(tmp_path: Path, slow: SlowReading) -> None:
    async with house(tmp_path) as h:
        replies = []
        for i in range(10):
            await h.service.create(APP, name=f"x{i}", system=None)
            replies.append(submit(h, f"x{i}", f"number {i}"))
        await h.service.create(OTHER, name="y", system=None)
        await begun(slow)
        other = submit(h, "y", "quick", OTHER)
        await asyncio.sleep(0.05)
        slow.go_on.set()
        await asyncio.gather(other, *replies)
        assert [n for n, text in enumerate(slow.read) if "quick" in text] in ([1], [2])


@on_a_loop
async def test_the_grammars_that_an_app_holds_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "MAX_APP_BYTES", 60_000)
    monkeypatch.setattr(fair_thread, "MOST_REST_S", 0.0)
    go_on = threading.Event()
    async with house(tmp_path, max_running=1) as h:
        large = "a" * 300  # 26 kB of rules
        for name, app in (("x", APP), ("y", APP), ("z", APP), ("u", OTHER)):
            await h.service.create(app, name=name, system=None)
        h.thread.submit(go_on.wait, 30)  # the third comes while the first two are there
        first, second, third = (submit(h, name, f"{name} {large}") for name in "xyz")
        with pytest.raises(errors.Busy, match="other requests hold"):
            await third
        go_on.set()
        await asyncio.gather(first, second, submit(h, "u", "u" + large, OTHER))
        await submit(h, "z", "z " + large)
