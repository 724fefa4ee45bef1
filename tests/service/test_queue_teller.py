"""Calls that wait behind others are told how many go before, if they asked for progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llmaas.calls import CallSpec, Done, Generation, Piece, Queued, Terms, Turn
from llmaas.records import AppId, Message, RequestId
from tests.support.front_house import timeout
from tests.support.loop import on_a_loop
from tests.support.service_house import House, house

A, B = AppId("1000/a"), AppId("1000/b")
SLOW: dict[str, Any] = {"step_time": lambda n: 0.002, "end_rate": 0.0}
SOON = 30.0


@asynccontextmanager
async def one_at_a_time(root: Path) -> AsyncIterator[House]:
    """A service in which calls wait for each other. Those that have not ended are cancelled."""
    async with house(root, engine=SLOW, max_running=1, quantum=1000) as h:
        yield h
        for request in range(1, 20):
            h.service.cancel(RequestId(request))


class Asked:
    """A call, with the pieces that came."""

    def __init__(self, request: RequestId, reply: asyncio.Future[Done], pieces: list[Piece]) -> None:
        self.request, self.reply, self.pieces = request, reply, pieces
        reply.add_done_callback(lambda f: f.cancelled() or f.exception())

    @property
    def queued(self) -> list[Queued]:
        return [piece.queued for piece in self.pieces if piece.queued is not None]

    async def until_told(self) -> Queued:
        async with timeout(SOON):
            while not self.queued:
                await asyncio.sleep(0.01)
        return self.queued[-1]


async def ask(
    h: House, app: AppId = A, *, progress: bool = True, priority: int = 5, context: str = "", n: int = 500
) -> Asked:
    pieces: list[Piece] = []
    of = context or (await h.service.create(app, name=None, system=None)).id
    turn = Turn((Message("user", "go on"),))
    spec = CallSpec(turn, Generation(n), Terms(priority=priority), progress=progress)
    request, reply = h.service.submit(app, of, spec, pieces.append)
    return Asked(request, reply, pieces)


@on_a_loop
async def test_a_call_is_told_how_many_go_before_it(tmp_path: Path) -> None:
    async with one_at_a_time(tmp_path) as h:
        runs = await ask(h, priority=3)
        first, second, urgent = await ask(h), await ask(h), await ask(h, B, priority=4)
        assert (await second.until_told()) == Queued(2, None)
        assert (await first.until_told()).ahead == 1
        assert (await urgent.until_told()).ahead == 0
        assert not runs.queued
        assert not any(piece.text or piece.tokens or piece.of_answer for piece in second.pieces)


@on_a_loop
async def test_nobody_is_told_who_has_not_asked_or_who_waits_for_nobody(tmp_path: Path) -> None:
    async with one_at_a_time(tmp_path) as h:
        alone = await ask(h, n=5)
        await asyncio.wait_for(alone.reply, SOON)
        await ask(h)
        silent, told = await ask(h, progress=False), await ask(h)
        await told.until_told()
        assert not alone.queued and not silent.pieces


@on_a_loop
async def test_who_waits_for_its_own_context_is_told_too(tmp_path: Path) -> None:
    async with house(tmp_path, engine=SLOW, max_running=4) as h:
        context = (await h.service.create(A, name=None, system=None)).id
        runs = await ask(h, context=context)
        later = await ask(h, context=context)
        assert (await later.until_told()).ahead == 0
        for asked in (runs, later):
            h.service.cancel(asked.request)


@on_a_loop
async def test_how_long_it_takes_is_learned_from_calls_that_waited(tmp_path: Path) -> None:
    async with one_at_a_time(tmp_path) as h:
        short = [await ask(h, n=150) for _ in range(3)]  # 0.3 s each, at least
        await asyncio.wait({asked.reply for asked in short}, timeout=SOON)
        await ask(h)
        for _ in range(3):
            last = await ask(h)
        found = await last.until_told()
        assert found.ahead == 2 and found.expected_s is not None and found.expected_s > 0.3


@on_a_loop
async def test_a_call_that_was_admitted_is_told_no_more(tmp_path: Path) -> None:
    async with one_at_a_time(tmp_path) as h:
        runs, later = await ask(h), await ask(h)
        await later.until_told()
        h.service.cancel(runs.request)
        async with timeout(SOON):
            while not any(piece.tokens for piece in later.pieces):
                await asyncio.sleep(0.01)
        first = next(i for i, piece in enumerate(later.pieces) if piece.of_answer)
        assert all(piece.queued is None for piece in later.pieces[first:])
