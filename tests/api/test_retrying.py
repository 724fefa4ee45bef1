"""Clients that make requests again when the connection was lost: which, for how long, and what an answer looks like."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas.api import messages as msg
from llmaas.api import retrying
from llmaas.api.async_client import AsyncClient, AsyncStream
from llmaas.api.client import Client
from llmaas.api.retrying import MOST_TRIES, Retelling, Retries, repeatable
from llmaas.api.server import Server
from llmaas.calls import CallSpec, Piece, Turn
from llmaas.clock import ManualClock
from llmaas.errors import Busy, NotServing, ShuttingDown
from llmaas.records import AppId, Message
from tests.support.loop import on_a_loop
from tests.support.scripted import ScriptedBackend, serving, serving_in_a_thread, until


def told(*pieces: Piece | None) -> list[tuple[str, tuple[int, ...]]]:
    return [(piece.text, piece.tokens) for piece in pieces if piece is not None]


def test_what_was_told_is_not_told_twice() -> None:
    again = Retelling("one two", [1, 2, 3])
    parts = [Piece("on", (1,)), Piece("", (2,)), Piece("e two th", (3, 4)), Piece("ree", (5,))]
    assert told(*map(again.rest, parts)) == [(" th", (4,)), ("ree", (5,))]
    assert again.end() is None


@pytest.mark.parametrize(
    "parts", [[Piece("one ten", (1, 2, 3))], [Piece("one two", (1, 7, 3))], [Piece("one", (1,))], []]
)
def test_another_answer_than_had_begun_is_an_error_that_can_be_asked_again(parts: list[Piece]) -> None:
    again = Retelling("one two", [1, 2, 3])
    assert told(*map(again.rest, parts)) == []
    error = again.end()
    assert isinstance(error, NotServing) and "not the one that had begun" in error.message


def test_which_requests_are_made_again() -> None:
    key = {"idempotency_key": "k"}
    safe = [msg.Append("c", prompt="x", **key), msg.Generate("c", **key), msg.ListContexts(), msg.Show("c"), msg.Ping()]  # type: ignore[arg-type]
    safe += [msg.Resolve((Message("user", "x"),)), msg.Create("c", exist_ok=True)]
    unsafe = [msg.Append("c", prompt="x"), msg.Generate("c"), msg.Create(), msg.Truncate("c", 1), msg.Delete("c"), None]
    assert [*map(repeatable, safe)] == [True] * len(safe)
    assert [*map(repeatable, unsafe)] == [False] * len(unsafe)


def test_calls_get_a_key_of_their_own_where_they_can_be_made_again() -> None:
    never, often, call = Retries(0), Retries(5), msg.Generate("c")
    assert never.prepared(call) is call
    first, second = often.prepared(call), often.prepared(call)
    assert isinstance(first, msg.Generate) and isinstance(second, msg.Generate)
    assert first.idempotency_key != second.idempotency_key and len(first.idempotency_key or "") == 32
    for kept in (msg.Generate("c", idempotency_key="mine"), msg.Generate("c", logprobs=2), msg.Create()):
        assert often.prepared(kept) is kept


def test_tries_come_at_once_then_less_and_less_often_until_the_time_is_up() -> None:
    clock, waited = ManualClock(), []
    for pause in Retries(10, clock).pauses():
        clock.advance(pause)
        waited.append(pause)
    assert waited[:3] == [0, 0.05, 0.1] and max(waited) == 1.0 and 8 < sum(waited) <= 10
    assert [*Retries(0, clock).pauses()] == []


def test_a_refused_request_waits_longer_each_time_and_never_as_others_do() -> None:
    def waited(seconds: float) -> list[float]:
        clock, found = ManualClock(), list[float]()
        for wait in Retries(seconds, clock).waits():
            clock.advance(wait)
            found.append(wait)
        return found

    one, other = waited(60), waited(60)
    assert one != other and sum(one) == pytest.approx(60) and waited(0) == []
    assert all(0.05 * 2**i <= wait <= 0.1 * 2**i for i, wait in enumerate(one[:5])) and max(one) <= 5


class Full(ScriptedBackend):
    """Refuses the next ``n`` calls and new contexts."""

    n = 0

    def submit(self, *args: Any, **named: Any) -> Any:
        self._refuse()
        return super().submit(*args, **named)

    async def create(self, *args: Any, **named: Any) -> Any:
        self._refuse()
        return await super().create(*args, **named)

    def _refuse(self) -> None:
        if self.n:
            self.n -= 1
            raise Busy("all places are taken")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.002)


@pytest.mark.usefixtures("no_waiting")
def test_sync_what_was_refused_is_asked_again(path: Path) -> None:
    backend = Full()
    with serving_in_a_thread(path, backend=backend), Client(path, app="mail", retry_s=5) as client:
        for backend.n in (0, 1, 4):
            client.create(name=f"inbox-{backend.n}")
            assert backend.n == 0
        for backend.n in (1, 4):
            assert [piece.text for piece in client.generate("inbox-0", prompt="count 20")] == COUNTED
            backend.n = 2
            assert client.append("inbox-0", prompt="count 0").n_tokens == 9 and backend.n == 0
        with client.generate("inbox-0", prompt="count 20", logprobs=1) as stream:
            assert [piece.text for piece in stream] == COUNTED
    with serving_in_a_thread(path, backend=backend), Client(path, app="mail") as client:
        backend.n = 1
        with pytest.raises(Busy):
            client.create(name="other")


@pytest.mark.usefixtures("no_waiting")
def test_sync_a_daemon_that_stays_busy_is_asked_for_so_long(path: Path) -> None:
    backend = Full()
    with serving_in_a_thread(path, backend=backend), Client(path, app="mail", retry_s=0.1) as client:
        backend.n = 10**6
        with pytest.raises(Busy, match="all places"):
            client.create(name="inbox")
        assert 2 < 10**6 - backend.n < 100


@pytest.mark.usefixtures("no_waiting")
@on_a_loop
async def test_what_was_refused_is_asked_again_also_by_many_at_once(path: Path) -> None:
    backend = Full()
    async with (
        serving(path, backend=backend) as (_, server),
        await AsyncClient.connect(path, app="mail", retry_s=5) as client,
    ):
        await client.create(name="inbox")
        backend.n = 40
        streams = [client.generate("inbox", prompt="count 20") for _ in range(8)]

        async def texts(stream: AsyncStream) -> list[str]:
            return [piece.text async for piece in stream]

        assert await asyncio.gather(*map(texts, streams)) == [COUNTED] * 8 and backend.n == 0
        backend.n = 10**6
        stream = client.generate("inbox", prompt="count 20")
        waiting = asyncio.create_task(texts(stream))
        await until(lambda: backend.n < 10**6 - 1)
        for connection in list(server.connections):  # the connection goes while it waits
            connection.drop()
        backend.n = 3
        assert await waiting == COUNTED
        backend.n = 10**6
        stream = client.generate("inbox", prompt="count 20")
        waiting = asyncio.create_task(texts(stream))
        await until(lambda: backend.n < 10**6 - 1)
        await stream.cancel()
        with pytest.raises(Busy):
            await waiting
        backend.n = 0


class Flaky(ScriptedBackend):
    """Its next ``losses`` calls lose every connection after two pieces, or before any that take no pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = 0
        self.keys: list[str | None] = []
        self.server: Server | None = None

    def submit(self, app: AppId, context: str, spec: CallSpec, emit: Callable[[Piece], None], **named: Any) -> Any:
        self.keys.append(spec.idempotency_key)
        if not self.losses:
            return super().submit(app, context, spec, emit, **named)
        self.losses -= 1
        found = super().submit(app, context, replace(spec, turn=Turn(prompt="wait")), lambda piece: None, **named)
        if spec.generation is not None:
            for i in range(2):
                emit(Piece(f"{i} ", (i,)))
        asyncio.get_running_loop().call_later(0.01, self.cut)
        return found

    def cut(self) -> None:
        assert self.server is not None
        for connection in list(self.server.connections):
            connection.drop()


COUNTED = [f"{i} " for i in range(20)]


def test_sync_an_answer_goes_on_over_lost_connections(path: Path) -> None:
    backend = Flaky()

    async def begin(_: object, server: Server) -> None:
        backend.server = server

    with serving_in_a_thread(path, backend=backend) as there, Client(path, app="mail", retry_s=5) as client:
        there(begin)
        client.create(name="inbox")
        backend.losses = 3
        stream = client.generate("inbox", prompt="count 20")
        assert [piece.text for piece in stream] == COUNTED and stream.text == "".join(COUNTED)
        assert stream.done.n_generated == 3
        assert len(backend.keys) == 4 and set(backend.keys) == {stream.idempotency_key}
        backend.losses = 2
        assert client.append("inbox", [Message("user", "count 0")], idempotency_key="mine").n_tokens == 9
        assert backend.keys[4:] == ["mine"] * 3
        backend.losses = MOST_TRIES + 1
        with pytest.raises(NotServing, match="lost"):
            client.append("inbox", [Message("user", "count 0")])
        assert backend.losses == 0
        client.ping()


def test_sync_without_retries_a_lost_connection_is_an_error(path: Path) -> None:
    backend = Flaky()

    async def begin(_: object, server: Server) -> None:
        backend.server = server

    with serving_in_a_thread(path, backend=backend) as there, Client(path, app="mail") as client:
        there(begin)
        client.create(name="inbox")
        backend.losses = 1
        stream = client.generate("inbox", prompt="count 20")
        assert stream.idempotency_key is None
        with pytest.raises(NotServing, match="lost"):
            list(stream)
        with pytest.raises(NotServing, match="lost"):
            client.ping()


def test_sync_what_must_not_be_done_twice_fails_and_the_next_request_connects(path: Path) -> None:
    async def cut(_: object, server: Server) -> None:
        for connection in list(server.connections):
            connection.drop()

    with serving_in_a_thread(path) as there, Client(path, app="mail", retry_s=5) as client:
        client.create(name="inbox")
        there(cut)
        with pytest.raises(NotServing):
            client.create(name="other")
        assert [info.name for info in client.contexts()] == ["inbox"]
        there(cut)
        assert [info.name for info in client.contexts()] == ["inbox"]
        stream = client.generate("inbox", prompt="wait")
        next(stream)
        there(cut)
        stream.cancel()
        with pytest.raises(NotServing, match="lost"):
            next(stream)
        client.ping()
        client.close()
        with pytest.raises(NotServing, match="closed"):
            client.ping()


def test_sync_a_client_waits_for_the_next_daemon_and_no_longer_than_it_was_told(path: Path) -> None:
    async def stop(_: object, server: Server) -> None:
        await server.close()

    with serving_in_a_thread(path) as there:
        client = Client(path, app="mail", retry_s=0.3)
        client.ping()
        there(stop)
        with pytest.raises((ShuttingDown, NotServing)):
            client.ping()
    with serving_in_a_thread(path):
        client.ping()
    client.close()


@on_a_loop
async def test_an_answer_goes_on_over_lost_connections(path: Path) -> None:
    backend = Flaky()
    async with serving(path, backend=backend) as (_, server):
        backend.server = server
        async with await AsyncClient.connect(path, app="mail", retry_s=5) as client:
            await client.create(name="inbox")
            backend.losses = 5
            streams = [client.generate("inbox", prompt="count 20") for _ in range(3)]

            async def texts(stream: AsyncStream) -> list[str]:
                return [piece.text async for piece in stream]

            told = await asyncio.gather(*map(texts, streams))
            assert told == [COUNTED] * 3
            assert (await streams[0].done()).n_generated == 3 and streams[0].text == "".join(COUNTED)
            assert set(backend.keys) == {stream.idempotency_key for stream in streams}
            backend.losses = 1
            assert (await client.append("inbox", [Message("user", "count 0")])).n_tokens == 9
            backend.cut()
            await asyncio.sleep(0.05)
            assert [info.name for info in await client.contexts()] == ["inbox"]
            backend.cut()
            await asyncio.sleep(0.05)
            assert [piece.text async for piece in client.generate("inbox", prompt="count 20")] == COUNTED


@on_a_loop
async def test_requests_go_on_with_the_next_daemon(path: Path) -> None:
    first, second = ScriptedBackend(), ScriptedBackend()
    async with serving(path, backend=first) as (_, server):
        client = await AsyncClient.connect(path, app="mail", retry_s=10)
        await client.create(name="inbox")
        second.known = first.known
        stream = client.generate("inbox", prompt="wait")
        waiting = asyncio.create_task(client.append("inbox", prompt="wait"))
        assert (await anext(stream)).text == "so "
        await server.close()
    async with serving(path, backend=second):
        text = asyncio.create_task(anext(stream))
        await until(lambda: len(second.running) == 2)
        await stream.cancel()
        for ended in (text, waiting):
            ended.cancel()
        await client.close()
        with pytest.raises(NotServing, match="closed"):
            await client.ping()
