"""Frames that say how long a model will take to load: before the hello reply, and while calls run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.async_client import AsyncClient
from llmaas.api.client_session import Session
from llmaas.api.hello import read_hello, reply_frame
from llmaas.api.loading_teller import FIRST_S, LoadingTeller
from llmaas.api.server import serve
from llmaas.api.wire import Decoder, encode
from llmaas.calls import Loading, Piece
from llmaas.errors import LlmaasError
from tests.support.front_house import timeout
from tests.support.loop import on_a_loop
from tests.support.scripted import ScriptedBackend

SOON, UNKNOWN = Loading("coder", 1.5), Loading("coder", None)


def loading(what: Loading) -> bytes:
    return encode(replies.loading_frame(what))


def test_a_client_that_waits_is_told_and_the_hello_still_comes() -> None:
    told: list[Loading] = []
    session = Session("app", model="coder", on_loading=told.append)
    session.receive(loading(UNKNOWN) + loading(SOON))
    assert told == [UNKNOWN, SOON] and not session.greeting.ended
    session.receive(encode(reply_frame("llmaas", {}, {})))
    assert session.greeting.ended and session.fault is None


def test_calls_that_ask_for_progress_get_pieces_of_it_and_others_none() -> None:
    session = Session("app", model="coder")
    session.receive(encode(reply_frame("llmaas", {}, {})))
    asks, _ = session.start(msg.Generate("c", prompt="x", progress=True))
    plain, _ = session.start(msg.Generate("c", prompt="x"))
    session.receive(loading(SOON))
    assert list(asks.pieces) == [Piece("", (), loading=SOON)] and not plain.pieces
    assert asks.text == "" and session.fault is None


def test_only_who_names_a_model_or_listens_says_so_since_older_daemons_know_no_such_field() -> None:
    def said(session: Session) -> bool | None:
        (frame,) = Decoder().feed(session.hello())
        return read_hello(frame).told_of_loading

    assert said(Session("app")) is None
    assert said(Session("app", model="coder")) is True
    assert said(Session("app", on_loading=lambda loading: None)) is True


class Weights:
    """What the server asks: ``left`` seconds are told, None is unknown; ``there``: nothing is waited for."""

    def __init__(self) -> None:
        self.there, self.left, self.asked = True, 2.0, 0

    def loading(self) -> Loading | None:
        self.asked += 1
        return None if self.there else Loading("m", self.left)


def teller_of(weights: Weights, running: list[bool]) -> tuple[LoadingTeller, list[bytes]]:
    told: list[bytes] = []
    return LoadingTeller(weights.loading, lambda: bool(running), told.append), told


@on_a_loop
async def test_who_waits_for_weights_is_told_until_they_are_there() -> None:
    weights, running = Weights(), [True]
    teller, told = teller_of(weights, running)
    weights.there = False
    for _ in range(5):
        teller.asked()
    await asyncio.sleep(4 * FIRST_S)
    assert Decoder().feed(b"".join(told)) == [replies.loading_frame(Loading("m", 2.0))], "once, for all requests"
    weights.there = True
    async with timeout(20):
        while weights.asked < 2:
            await asyncio.sleep(0.02)
    await asyncio.sleep(2 * FIRST_S)
    assert len(told) == 1 and weights.asked == 2, "they are there, and nothing is asked any more"


@on_a_loop
async def test_who_has_nothing_running_or_is_gone_is_told_nothing() -> None:
    weights, running = Weights(), list[bool]()
    weights.there = False
    teller, told = teller_of(weights, running)
    teller.asked()
    await asyncio.sleep(4 * FIRST_S)
    running.append(True)
    teller.asked()
    teller.close()
    teller.asked()
    await asyncio.sleep(4 * FIRST_S)
    assert not told


@on_a_loop
async def test_a_server_tells_those_that_said_so_and_no_others(tmp_path: Path) -> None:
    backend, weights = ScriptedBackend(), Weights()
    weights.there = False
    server = await serve(backend, tmp_path / "d.sock", loading=weights.loading)
    try:
        first: list[Loading] = []
        told = await AsyncClient.connect(tmp_path / "d.sock", app="a", on_loading=first.append)
        other = await AsyncClient.connect(tmp_path / "d.sock", app="b")
        context = await told.context("c")
        waits = asyncio.ensure_future(told.generate(context.id, prompt="wait", max_tokens=4).done())
        async with timeout(20):
            while not first:
                await asyncio.sleep(0.01)
        assert first[0] == Loading("m", 2.0)
        assert await other.context("d")
        await told.close()
        await other.close()
        with pytest.raises(LlmaasError):
            await waits
    finally:
        await server.close()
