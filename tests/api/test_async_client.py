"""AsyncClient against a scripted daemon: answers, errors, cancelling, lost connections."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.server import Limits
from llmaas.calls import FinishReason, Piece, Priority, Sampling, Terms
from llmaas.errors import (
    BadRequest,
    Busy,
    Cancelled,
    ContextExists,
    ContextTooLong,
    FrameTooLarge,
    Internal,
    NotServing,
    ShuttingDown,
    UnknownContext,
)
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.scripted import serving, until


@on_a_loop
async def test_async_every_operation(path: Path) -> None:
    async with serving(path) as (backend, _), await AsyncClient.connect(path, app="mail", admin=True) as client:
        assert client.server["model"] == "scripted"
        info = await client.create(name="inbox", system="Be brief.")
        assert (info.name, info.app) == ("inbox", f"{os.getuid()}/mail")
        assert await client.contexts() == [info]
        assert await client.contexts(everyone=True) == [info]
        assert (await client.show("inbox")).messages == (Message("system", "Be brief."),)
        assert (await client.fork("inbox", name="copy")).name == "copy"
        terms = Terms(Priority.BACKGROUND, deadline_s=9.5, rate=3.0, adapter="legal")
        await client.append("inbox", prompt="count 1", terms=terms)
        assert backend.terms[-1] == terms
        assert (await client.limit("0/mail", 7.5))["apps"] == {"0/mail": 7.5}
        assert (await client.truncate("copy", n_tokens=0)).name == "copy"
        assert (await client.migrate("copy")).name == "copy"
        await client.delete("copy")
        await client.delete(info.id, everyone=True)
        assert await client.contexts() == []
        assert await client.stats() == backend.stats_reply
        await client.ping()


@on_a_loop
async def test_async_streams_run_side_by_side(path: Path) -> None:
    async with serving(path) as (backend, _), await AsyncClient.connect(path, app="mail") as client:
        await client.create(name="inbox")
        sampling = Sampling(temperature=0.7, seed=3)
        one = client.generate("inbox", [Message("user", "count 30")], max_tokens=5, sampling=sampling, stop="END")
        two = client.generate("inbox", [{"role": "user", "content": "count 20"}])
        append = asyncio.create_task(client.append("inbox", prompt="count 0"))
        assert [piece async for piece in two] == [Piece(f"{i} ", (i,)) for i in range(20)]
        assert (await one.done()).reason is FinishReason.STOP
        assert one.text == "".join(f"{i} " for i in range(30))
        assert (await append).n_generated == 3
        assert backend.generations[0] is not None
        assert (backend.generations[0].sampling, backend.generations[0].stop) == (sampling, ("END",))
        assert backend.generations[-1] is None


@on_a_loop
async def test_async_pieces_are_passed_on_in_order_and_one_after_another(path: Path) -> None:
    async with serving(path) as (_, __), await AsyncClient.connect(path, app="mail") as client:
        await client.create(name="inbox")
        stream, at_once = client.generate("inbox", prompt="count 30"), client.generate("inbox", prompt="count 30")
        told, busy = list[str](), False

        async def wait(piece: Piece) -> None:
            nonlocal busy
            await asyncio.sleep(0.001)
            told.append(piece.text)
            busy = False

        def take(piece: Piece) -> Awaitable[None] | None:
            nonlocal busy
            assert not busy
            if piece.tokens[0] % 3:
                told.append(piece.text)
                return None
            busy = True
            return wait(piece)

        assert (await stream.__anext__()).text == "0 "
        await stream.pass_to(take)
        assert told == [f"{i} " for i in range(1, 30)]
        assert (await stream.done()).n_generated == 3 and stream.text.startswith("0 1 2 ")
        passed = list[Piece]()
        await at_once.pass_to(passed.append)
        assert passed == [Piece(f"{i} ", (i,)) for i in range(30)]
        await at_once.pass_to(passed.append)
        assert len(passed) == 30, "there is no more"


@on_a_loop
async def test_async_what_fails_while_pieces_are_passed_on_ends_that_answer_only(path: Path) -> None:
    async with serving(path) as (_, __), await AsyncClient.connect(path, app="mail") as client:
        await client.create(name="inbox")

        def fail(piece: Piece) -> None:
            if piece.tokens[0] == 5:
                raise ValueError("five")

        stream = client.generate("inbox", prompt="count 30")
        with pytest.raises(ValueError, match="five"):
            await stream.pass_to(fail)
        assert (await stream.done()).reason is FinishReason.STOP
        with pytest.raises(ContextTooLong):
            await client.generate("inbox", prompt="too long").pass_to(fail)
        waiting = client.generate("inbox", prompt="wait")
        passing = asyncio.create_task(waiting.pass_to(lambda piece: None))
        await until(lambda: waiting.text == "so ")
        passing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await passing
        await waiting.cancel()
        with pytest.raises(Cancelled):
            await waiting.pass_to(fail)
        await client.ping()


@on_a_loop
async def test_async_cancel_ends_the_stream_with_what_came(path: Path) -> None:
    async with serving(path) as (_, __), await AsyncClient.connect(path, app="mail") as client:
        await client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        assert (await stream.__anext__()).text == "so "
        await stream.cancel()
        await stream.cancel()  # twice does no harm
        with pytest.raises(Cancelled) as caught:
            await stream.done()
        assert caught.value.n_generated == 1
        with pytest.raises(Cancelled):
            await stream.__anext__()
        assert stream.text == "so "
        stubborn = client.generate("inbox", prompt="stubborn")
        await stubborn.cancel()
        assert (await stubborn.done()).reason is FinishReason.LENGTH
        await client.ping()


@pytest.mark.parametrize("way", ["with", "aclose", "task"])
@on_a_loop
async def test_async_leaving_early_cancels(path: Path, way: str) -> None:
    async with serving(path) as (backend, _), await AsyncClient.connect(path, app="mail") as client:
        await client.create(name="inbox")
        if way == "with":
            async with client.generate("inbox", prompt="wait") as stream:
                async for _piece in stream:
                    break
        elif way == "aclose":
            stream = client.generate("inbox", prompt="wait")
            await stream.__anext__()
            await stream.aclose()
        else:
            task = asyncio.create_task(client.append("inbox", prompt="wait"))
            await until(lambda: bool(backend.running))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: not backend.running)
        assert backend.cancelled == [1]
        await client.ping()


@on_a_loop
async def test_async_errors_are_raised_as_their_classes(path: Path) -> None:
    async with serving(path, limits=Limits(max_in_flight=1)), await AsyncClient.connect(path, app="a") as client:
        await client.create(name="inbox")
        with pytest.raises(ContextExists, match="inbox"):
            await client.create(name="inbox")
        with pytest.raises(UnknownContext) as caught:
            await client.show("nowhere")
        assert "nowhere" in caught.value.message
        assert "list them" in caught.value.hint
        with pytest.raises(ContextTooLong):
            await client.generate("inbox", prompt="too long").done()
        with pytest.raises(Internal):
            async for _ in client.generate("inbox", prompt="boom"):
                pass
        async with client.generate("inbox", prompt="wait"):
            with pytest.raises(Busy):
                await client.append("inbox", prompt="count 0")
        with pytest.raises(BadRequest, match="max_tokens"):
            client.generate("inbox", max_tokens=0)
        with pytest.raises(BadRequest, match="n_tokens or n_messages"):
            await client.truncate("inbox")
        with pytest.raises(BadRequest, match="Unicode"):
            await client.append("inbox", prompt="\ud800")
        with pytest.raises(BadRequest, match="'name'"):
            await client.create(name=5)  # type: ignore[arg-type]
        await client.ping()


@on_a_loop
async def test_async_what_is_too_large_for_the_daemon_is_refused_before_it_is_sent(path: Path) -> None:
    async with (
        serving(path, limits=Limits(max_frame=16384)),
        await AsyncClient.connect(path, app="mail") as client,
    ):
        await client.create(name="inbox")
        with pytest.raises(FrameTooLarge, match="16384"):
            await client.append("inbox", prompt="x" * 16384)
        await client.ping()


@on_a_loop
async def test_async_a_shutdown_and_a_lost_connection_end_what_waits(path: Path) -> None:
    async with serving(path) as (backend, server):
        client = await AsyncClient.connect(path, app="mail")
        await client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        append = asyncio.create_task(client.append("inbox", prompt="wait"))
        await until(lambda: len(backend.running) == 2)
        await server.close()
        with pytest.raises(ShuttingDown):
            await stream.done()
        with pytest.raises(ShuttingDown):
            await append
        with pytest.raises(ShuttingDown):
            await client.ping()
        await client.close()
    async with serving(path) as (_, server):
        client = await AsyncClient.connect(path, app="mail")
        ping = asyncio.create_task(client.ping())
        await asyncio.sleep(0)
        for connection in list(server.connections):
            connection.drop()
        with pytest.raises(NotServing, match="lost"):
            await ping
        await client.close()


@on_a_loop
async def test_async_a_closed_client_says_so(path: Path) -> None:
    async with serving(path) as (backend, _):
        client = await AsyncClient.connect(path, app="mail")
        await client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        await until(lambda: bool(backend.running))
        await client.close()
        for call in (client.ping(), stream.done()):
            with pytest.raises(NotServing, match="closed"):
                await call
        await until(lambda: not backend.running)
