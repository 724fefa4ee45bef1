"""Contexts that were made with a time to live go when nobody uses them: not before, and none that is in use."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmaas.api import messages as msg
from llmaas.calls import CallSpec, Generation, Turn
from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.store import Store
from llmaas.records import ContextId, Message
from llmaas.service import expiry
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

TTL = 100.0
POLL_S = 0.01


@dataclass
class Clocks:
    """Two clocks that can be set apart."""

    mono: float = 1000.0
    epoch: float = 1_700_000_000.0

    def now(self) -> float:
        return self.mono

    def wall(self) -> float:
        return self.epoch

    def advance(self, seconds: float) -> None:
        self.mono += seconds
        self.epoch += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """The service looks at the clocks all the time."""
    for name in ("LONGEST_WAIT_S", "IN_USE_S", "FAILED_S"):
        monkeypatch.setattr(expiry, name, POLL_S)
    return Clocks()


def names(h: House) -> set[str]:
    return {info.name for info in h.service.contexts(APP)}


async def until(happened: Callable[[], bool]) -> None:
    late = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < late
        await asyncio.sleep(POLL_S)


async def some_looks() -> None:
    """Time for the service to look at the clocks a few times."""
    await asyncio.sleep(10 * POLL_S)


@on_a_loop
async def test_a_context_goes_when_it_was_not_used_for_its_time_and_others_stay(tmp_path: Path, clocks: Clocks) -> None:
    async with house(tmp_path, clock=clocks) as h:
        for name, ttl in (("goes", TTL), ("used", TTL), ("later", 2 * TTL), ("stays", None)):
            info = await h.service.create(APP, name=name, system="Hi.", ttl=ttl)
            assert info.ttl == ttl == h.service.info(APP, name).ttl
        assert (await h.service.fork(APP, "goes", name="fork")).ttl is None
        clocks.advance(TTL - 1)
        await h.say("used", "hello", 4)
        await some_looks()
        assert names(h) == {"goes", "used", "later", "stays", "fork"}
        clocks.advance(2)
        await until(lambda: "goes" not in names(h))
        assert names(h) == {"used", "later", "stays", "fork"} == {row.name for row in h.store.contexts()}
        clocks.advance(TTL - 1)
        await until(lambda: names(h) == {"stays", "fork"})
        clocks.advance(1e9)
        await some_looks()
        assert names(h) == {"stays", "fork"}


@on_a_loop
async def test_the_time_without_a_daemon_counts(tmp_path: Path, clocks: Clocks) -> None:
    async with house(tmp_path, clock=clocks) as h:
        for name in ("a", "b"):
            await h.service.create(APP, name=name, system="Hi.", ttl=TTL)
        clocks.advance(60)
        await h.say("b", "hello", 4)
    clocks.mono = 5.0
    clocks.epoch += 60
    async with house(tmp_path, clock=clocks) as h:
        assert h.service.info(APP, "b").ttl == TTL
        await until(lambda: names(h) == {"b"})
        clocks.advance(30)
        await h.say("b", "hello", 4)
        clocks.advance(TTL - 1)
        await some_looks()
        assert names(h) == {"b"}
        clocks.advance(1)
        await until(lambda: not names(h))


@on_a_loop
async def test_a_wall_clock_that_is_set_anew_makes_none_go_early(tmp_path: Path, clocks: Clocks) -> None:
    async with house(tmp_path, clock=clocks) as h:
        await h.service.create(APP, name="x", system=None, ttl=TTL)
        clocks.epoch += 1e6  # forward: it was used a moment ago all the same
        await some_looks()
        assert names(h) == {"x"}
        clocks.epoch -= 2e6  # back
        clocks.advance(TTL)
        await some_looks()
        assert names(h) == {"x"}
    async with house(tmp_path, clock=clocks) as h:  # it was used in the future, says the clock
        clocks.advance(TTL)
        await some_looks()
        assert names(h) == {"x"}
        clocks.epoch += 1e6
        await until(lambda: not names(h))


@on_a_loop
async def test_none_goes_that_is_in_use(tmp_path: Path, clocks: Clocks) -> None:
    async with house(tmp_path, clock=clocks, engine={"step_time": lambda tokens: 0.005}) as h:
        await h.service.create(APP, name="told", system=None, ttl=TTL)
        await h.service.create(APP, name="called", system=None, ttl=TTL)
        clocks.advance(TTL - 1)
        told = await h.service.create(APP, name="told", system=None, exist_ok=True, ttl=5.0)
        assert told.ttl == TTL, "only of a context that is made"
        begun = asyncio.Event()
        spec = CallSpec(Turn((Message("user", "hello"),)), Generation(100_000))
        request, done = h.service.submit(APP, "called", spec, lambda piece: begun.set())
        await begun.wait()
        clocks.advance(2)
        await some_looks()
        assert names(h) == {"told", "called"}
        clocks.advance(30)
        await until(lambda: names(h) == {"called"})
        clocks.advance(2 * TTL)
        await some_looks()
        assert names(h) == {"called"} and not done.done()
        h.service.cancel(request)
        await asyncio.wait([done])
        await some_looks()
        assert names(h) == {"called"}, "it was used until now"
        clocks.advance(TTL)
        await until(lambda: not names(h))


@on_a_loop
async def test_a_context_is_made_anew_while_the_old_one_goes(
    tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, clock=clocks) as h:
        old = await h.service.create(APP, name="x", system="Old.", ttl=TTL)
        going, delete = asyncio.Event(), Store.delete_context
        loop = asyncio.get_running_loop()

        def slowly(store: Store, context: ContextId, *args: object) -> object:
            loop.call_soon_threadsafe(going.set)
            time.sleep(0.05)
            return delete(store, context, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Store, "delete_context", slowly)
        clocks.advance(TTL)
        await going.wait()
        new = await h.service.create(APP, name="x", system="New.", exist_ok=True, ttl=TTL)
        assert new.id != old.id and (await h.shown("x")).messages == (Message("system", "New."),)


@on_a_loop
async def test_one_that_cannot_be_deleted_is_tried_again(
    tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(tmp_path, clock=clocks) as h:
        await h.service.create(APP, name="x", system=None, ttl=TTL)

        def fails(*_: object) -> None:
            raise StoreFailed("the disk does not answer")

        monkeypatch.setattr(Store, "delete_context", fails)
        clocks.advance(TTL)
        await until(lambda: "cannot be deleted: the disk does not answer" in caplog.text)
        assert names(h) == {"x"}
        monkeypatch.undo()
        await until(lambda: not names(h))


@on_a_loop
async def test_a_damaged_context_stays_until_it_is_repaired(tmp_path: Path, clocks: Clocks) -> None:
    async with house(tmp_path, clock=clocks) as h:
        await h.service.create(APP, name="x", system="Be brief.", ttl=TTL)
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as con, con:
        con.execute("UPDATE spans SET text = 'Never be.'")
    clocks.advance(2 * TTL)
    monitored = Clocks(clocks.mono, clocks.epoch - TTL - 1)  # not due before it has been looked at
    async with house(tmp_path, clock=monitored) as h:
        await h.service.wait_idle()
        monitored.advance(TTL)
        await some_looks()
        assert names(h) == {"x"}
        await h.service.delete(APP, "x")


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_a_time_that_is_none_is_refused(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl must be a number of seconds above 0"):
        msg.Create("x", ttl=ttl)
