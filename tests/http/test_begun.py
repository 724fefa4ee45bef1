"""A coroutine is run at once, as far as it comes, and the rest by whoever awaits it."""

from __future__ import annotations

import asyncio

import pytest

from llmaas.http.begun import begun
from tests.support.loop import on_a_loop


@on_a_loop
async def test_what_waits_for_nothing_has_ended_at_once() -> None:
    done = list[int]()

    async def add(number: int) -> None:
        done.append(number)

    async def both() -> None:
        await add(1)
        await add(2)

    assert begun(both()) is None and done == [1, 2]


@on_a_loop
async def test_what_waits_goes_on_where_it_was_when_it_is_awaited() -> None:
    done, gates = list[int](), [asyncio.Event(), asyncio.Event()]

    async def step() -> None:
        for i, gate in enumerate(gates):
            done.append(i)
            await gate.wait()

    rest = begun(step())
    assert rest is not None and done == [0]
    waiting = asyncio.ensure_future(asyncio.wait_for(rest, 10))
    gates[0].set()
    while done != [0, 1]:
        await asyncio.sleep(0)
    assert not waiting.done()
    gates[1].set()
    await waiting


@on_a_loop
async def test_it_fails_where_it_would_have_failed() -> None:
    gate = asyncio.Event()

    async def fail(at_once: bool) -> None:
        if not at_once:
            await gate.wait()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        begun(fail(True))
    rest = begun(fail(False))
    assert rest is not None
    gate.set()
    with pytest.raises(ValueError, match="no"):
        await rest


@on_a_loop
async def test_it_is_cancelled_with_who_awaits_it() -> None:
    told = list[str]()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    rest = begun(wait())

    async def awaits() -> None:
        assert rest is not None
        await rest

    task = asyncio.ensure_future(awaits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["cancelled"]
