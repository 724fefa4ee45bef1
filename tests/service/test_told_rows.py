"""Tokens that the engine tells while it computes, and those that come with the end of a burst, make one answer."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import CallSpec, Done, Generation, Piece, Turn
from llmaas.engine.base import BatchItem, Halt, Row
from llmaas.engine.fake import FakeEngine
from llmaas.engine.plain_steps import plain_steps
from llmaas.engine.row_pipe import Telling
from llmaas.kvchunks.store.tokens import unpack
from llmaas.records import Message
from llmaas.service.loop_bridge import LoopBridge
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house
from tests.support.told_rows import record


class TellingEngine(FakeEngine):
    """Tells some of its rows before its steps return, in records of any size."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.dice = random.Random(4)
        self.n_told = 0

    def steps(
        self,
        items: Sequence[BatchItem],
        most: int,
        seconds: float,
        halt: Halt,
        adapter: str = "",
        telling: Telling | None = None,
    ) -> list[Row]:
        assert telling is not None
        rows = plain_steps(self, items, self.how_many(most), seconds, halt, adapter)
        self.tell_some(telling, [*telling.ahead, *rows], halt)
        return rows

    def how_many(self, most: int) -> int:
        """Steps in a row."""
        return self.dice.randint(1, min(most, 9))

    def tell_some(self, telling: Telling, ready: Sequence[Row], halt: Halt) -> None:
        while self.dice.random() < 0.7 and telling.told < len(ready) - 1:  # never the last: it may end the answer
            self.tell(telling, ready[telling.told : self.dice.randint(telling.told + 1, len(ready) - 1)])

    def tell(self, telling: Telling, rows: Sequence[Row]) -> None:
        os.write(telling.pipe, record(telling.number, telling.before + telling.told, rows))
        telling.told += len(rows)
        self.n_told += len(rows)


async def answers(root: Path, kind: type[FakeEngine]) -> tuple[list[str], list[list[int]], int]:
    """Of three calls at once: the texts and the tokens that were streamed, and how many tokens the engine told."""
    async with house(root, engine_type=kind, engine={"n_cells": 4096}) as h:
        texts, streamed = [""] * 3, [list[int]() for _ in range(3)]

        def taker(i: int) -> Callable[[Piece], None]:
            def take(piece: Piece) -> None:
                texts[i] += piece.text
                streamed[i] += piece.tokens

            return take

        futures = []
        for i in range(3):
            await h.service.create(APP, name=str(i), system=None)
            spec = CallSpec(Turn((Message("user", f"Call {i}."),)), Generation(90 + 40 * i))
            futures.append(h.service.submit(APP, str(i), spec, taker(i))[1])
        for i, future in enumerate(futures):
            done = await future
            assert h.tokens(str(i))[-done.n_generated :] == streamed[i], "what was told is what the context keeps"
            assert done.n_generated == len(streamed[i])
            assert h.service.show(APP, str(i)).messages[-1].content == texts[i]
        engine = h.thread.engine
        return texts, streamed, engine.n_told if isinstance(engine, TellingEngine) else 0


@pytest.mark.parametrize("late", [False, True])
@on_a_loop
async def test_told_rows_and_sent_ones_are_streamed_in_order_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    wanted, tokens, _ = await answers(tmp_path / "plain", FakeEngine)
    if late:  # what is told comes before what was sent to the loop earlier
        loop, send = asyncio.get_running_loop(), LoopBridge.send

        def send_late(bridge: LoopBridge, call: Callable[..., None], *args: object) -> None:
            send(bridge, lambda: loop.call_later(0.003, call, *args) and None)

        monkeypatch.setattr(LoopBridge, "send", send_late)
    texts, streamed, n_told = await answers(tmp_path / "telling", TellingEngine)
    assert (texts, streamed) == (wanted, tokens)
    assert n_told > 20


class HeldEngine(TellingEngine):
    """Tells all rows but the last one, and goes on when somebody wants it to end its steps."""

    def how_many(self, most: int) -> int:
        return min(most, 5)

    def tell_some(self, telling: Telling, ready: Sequence[Row], halt: Halt) -> None:
        if len(ready) > len(telling.ahead) + 1:
            self.tell(telling, ready[:-1])
            wait = threading.Event()
            for _ in range(6000):
                if halt.is_set:
                    break
                wait.wait(0.01)


async def five_streamed(h: House) -> tuple[list[int], int, asyncio.Future[Done]]:
    """An answer in the context x, of which at least five tokens were streamed; the steps that drew them go on."""
    streamed, five = list[int](), asyncio.Event()

    def take(piece: Piece) -> None:
        streamed.extend(piece.tokens)
        if len(streamed) >= 5:
            five.set()

    spec = CallSpec(Turn((Message("user", "Go."),)), Generation(200))
    request, future = h.service.submit(APP, "x", spec, take)
    await asyncio.wait_for(five.wait(), 60)
    return streamed, request, future


@on_a_loop
async def test_rows_are_streamed_while_the_steps_go_on_and_stay_in_the_context(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=HeldEngine) as h:
        await h.service.create(APP, name="x", system=None)
        streamed, request, future = await five_streamed(h)
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled) as ended:
            await future
        assert ended.value.n_generated == len(streamed) >= 5
        assert h.tokens("x")[-len(streamed) :] == streamed


@on_a_loop
async def test_what_was_told_of_an_answer_goes_ahead_of_its_context_before_the_steps_that_drew_it_end(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, engine_type=HeldEngine) as h:
        await h.service.create(APP, name="x", system=None)
        departures = h.service.transfers.departures
        departures.calls = h.service
        streamed, request, future = await five_streamed(h)
        ahead = await departures.answered(APP, "x")
        assert ahead is not None
        n_before = ahead.exported.n_tokens
        assert list(unpack(ahead.tokens_from(n_before))) == streamed
        assert list(unpack(ahead.tokens_from(n_before + 3))) == streamed[3:]
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled):
            await future
        assert list(unpack(ahead.tokens_from(n_before))) == h.tokens("x")[n_before:] == streamed
