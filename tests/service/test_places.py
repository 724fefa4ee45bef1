"""Calls and hints have places: one app's take none that another needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import CallSpec, Done, Generation, Turn
from llmaas.errors import Busy, Cancelled
from llmaas.records import AppId, Message, RequestId
from llmaas.service import places
from tests.support.loop import on_a_loop
from tests.support.service_house import House, house

SLOW: dict[str, Any] = {"step_time": lambda n: 0.002, "end_rate": 0.0}
Begun = tuple[RequestId, "asyncio.Future[Done]"]


def app(name: str, uid: int = 1000) -> AppId:
    return AppId(f"{uid}/{name}")


@asynccontextmanager
async def busy_house(root: Path, **settings: Any) -> AsyncIterator[House]:
    """A service whose calls run until they are cancelled, as all are at the end."""
    async with house(root, engine=SLOW, **{"max_running": 2, **settings}) as h:
        yield h
        for request in range(1, 200):
            h.service.cancel(RequestId(request))


async def ask(h: House, owner: AppId, *, operator: bool = False) -> Begun:
    """A call of the app that runs for long, in a context of its own."""
    info = await h.service.create(owner, name=None, system=None)
    spec = CallSpec(Turn((Message("user", "go on"),)), Generation(500))
    request, future = h.service.submit(owner, info.id, spec, lambda piece: None, operator=operator)
    future.add_done_callback(lambda f: f.exception())
    return request, future


async def end(begun: list[Begun]) -> list[object]:
    """How the calls have ended, or None."""
    await asyncio.sleep(0.05)
    return [type(future.exception()) if future.done() else None for _, future in begun]


@on_a_loop
async def test_what_one_app_asks_for_makes_no_other_busy(tmp_path: Path) -> None:
    async with busy_house(tmp_path, queue_limit=64) as h:
        greedy = [await ask(h, app("greedy")) for _ in range(64)]
        with pytest.raises(Busy, match="64 requests of the app 1000/greedy"):
            await ask(h, app("greedy"))
        modest = [await ask(h, app("modest")) for _ in range(44)]
        assert set(await end(greedy + modest)) == {None}


@on_a_loop
async def test_when_all_places_are_taken_the_last_that_waits_of_the_app_with_most_gives_way(tmp_path: Path) -> None:
    async with busy_house(tmp_path, queue_limit=3) as h:
        taken = {name: [await ask(h, app(name)) for _ in range(3)] for name in "abcd"}
        await asyncio.sleep(0.05)
        late = [await ask(h, app("late"))]
        assert await end(taken["d"]) == [None, None, Busy]
        _, pushed_out = taken["d"][2]
        assert "another app has fewer" in str(pushed_out.exception())
        late.append(await ask(h, app("late")))
        assert await end(taken["c"]) == [None, None, Busy]
        with pytest.raises(Busy, match="12 requests are waiting"):  # nobody has two more than it has
            await ask(h, app("late"))
        assert set(await end(late + taken["a"] + taken["b"])) == {None}


@on_a_loop
async def test_a_user_with_many_apps_takes_no_place_that_another_user_needs(tmp_path: Path) -> None:
    async with busy_house(tmp_path, queue_limit=2) as h:
        taken = [await ask(h, app(f"name-{i}")) for i in range(8)]
        with pytest.raises(Busy):
            await ask(h, app("name-8"))
        other = await ask(h, app("mail", uid=7))
        assert await end([*taken, other]) == [None] * 7 + [Busy, None]


@on_a_loop
async def test_places_are_kept_for_the_operator(tmp_path: Path) -> None:
    async with busy_house(tmp_path, queue_limit=1) as h:
        taken = [await ask(h, app(f"name-{i}")) for i in range(4)]
        with pytest.raises(Busy):
            await ask(h, app("name-0"))
        operator = [await ask(h, app("name-0"), operator=True) for _ in range(places.OPERATOR_CALLS)]
        with pytest.raises(Busy):
            await ask(h, app("name-0"), operator=True)
        assert set(await end(taken + operator)) == {None}


async def used_contexts(h: House, owner: AppId, n: int) -> list[str]:
    """Contexts with something to bring back, on a service that is idle."""
    names = [f"{i}" for i in range(n)]
    for name in names:
        await h.service.create(owner, name=name, system=None)
        await h.say(name, "hello", 2, app=owner)
    return names


@on_a_loop
async def test_an_app_has_two_hints_and_a_newer_one_takes_the_place_of_one_that_waits(tmp_path: Path) -> None:
    async with busy_house(tmp_path, max_running=1) as h:
        names = await used_contexts(h, app("a"), 4)
        await ask(h, app("b"))
        await asyncio.sleep(0.05)
        hints = [h.service.hint(app("a"), name) for name in names]
        begun = [hint for hint in hints if hint is not None]
        assert await end(begun) == [Cancelled, Cancelled, None, None]
        assert h.service.stats()["requests"]["active"] == 3  # type: ignore[index]


@on_a_loop
async def test_all_hints_together_have_places_and_the_app_with_most_gives_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "HINTS", 3)
    async with busy_house(tmp_path, max_running=1) as h:
        for name in "abc":
            await used_contexts(h, app(name), 2)
        await ask(h, app("x"))
        await asyncio.sleep(0.05)
        hints = [h.service.hint(app(name), context) for name, context in ("a0", "a1", "b0", "c0")]
        begun = [hint for hint in hints if hint is not None]
        assert await end(begun) == [Cancelled, None, None, None]
        assert h.service.hint(app("c"), "1") is None, "nobody has more hints than this app would have"


@on_a_loop
async def test_a_hint_takes_no_calls_place_and_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.service.runner.HINT_WAIT_S", 0.1)
    async with busy_house(tmp_path, max_running=1, queue_limit=1) as h:
        await used_contexts(h, app("a"), 2)
        await ask(h, app("b"))
        await asyncio.sleep(0.05)
        hints = [h.service.hint(app("a"), name) for name in "01"]
        call = await ask(h, app("a"))
        await asyncio.sleep(0.2)
        assert await end([hint for hint in hints if hint is not None]) == [Cancelled, Cancelled]
        assert await end([call]) == [None]


@on_a_loop
async def test_a_hint_that_must_leave_the_cells_ends(tmp_path: Path) -> None:
    async with busy_house(tmp_path, max_running=1, prefill_slice=16) as h:
        for name in ("first", "second"):
            await h.service.create(app("a"), name=name, system=None)
        h.service.budget(pool_bytes=0, disk_bytes=0)
        for name in ("first", "second"):
            await h.say(name, "word " * 140, 1, app=app("a"))
        hint = h.service.hint(app("a"), "first")
        assert hint is not None
        await asyncio.sleep(0.01)
        assert h.service.stats()["requests"] == {
            "active": 1,
            "waiting": 0,
            "total": 3,
            "waiting_by_priority": {},
        }
        call = await ask(h, app("b"))
        assert await end([hint, call]) == [Cancelled, None]
