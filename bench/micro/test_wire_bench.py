"""Protocol, server and client: what a streamed piece and a request cost (``pytest bench/micro/test_wire_bench.py``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.async_client import AsyncClient
from llmaas.api.backend import Backend, Evict
from llmaas.api.client_session import Session
from llmaas.api.hello import VERSION
from llmaas.api.server import serve
from llmaas.api.wire import Decoder, encode
from llmaas.calls import CallSpec, Done, FinishReason, Piece, SwitchReport
from llmaas.records import AppId, ContextDetail, ContextId, ContextInfo, Message, RequestId

PIECE = Piece(" hello", (1234,))
PIECES = 1000
REQUEST = msg.Generate("6f1c0e52a9b34d77", (Message("user", "How do I get home from here? " * 8),), seed=1)
INFO = ContextInfo(ContextId("6f1c0e52a9b34d77"), AppId("1000/mail"), "inbox", 900, 7, 1.7e9, 1.7e9, (0, 900, 0, 0))


class NoTokens:
    """Apps without tokens."""

    def on_evict(self, evict: Evict) -> None:
        pass

    def refuse_without(self, app: AppId) -> None:
        pass

    def most_urgent(self, app: AppId) -> int | None:
        return None


class FastBackend:
    """A backend whose answers cost nothing: it emits all pieces at once. It has only what the benches below call."""

    apps = NoTokens()

    def hello(self) -> dict[str, object]:
        return {"model": "none"}

    async def create(self, app: AppId, *, name: str | None, system: str | None) -> ContextInfo:
        return INFO

    async def fork(self, app: AppId, context: str, *, name: str | None) -> ContextInfo:
        return INFO

    async def truncate(self, app: AppId, context: str, *, n_tokens: int | None, n_messages: int | None) -> ContextInfo:
        return INFO

    async def delete(self, app: AppId | None, context: str) -> None:
        return None

    def contexts_after(self, app: AppId | None, number: int) -> Iterator[tuple[int, ContextInfo]]:
        return ((n, INFO) for n in range(number + 1, 1001))

    def load(self, app: AppId | None, context: str) -> None:
        return None

    def show(self, app: AppId | None, context: str) -> ContextDetail:
        return ContextDetail(INFO, ())

    def submit(
        self,
        app: AppId,
        context: str,
        spec: CallSpec,
        emit: Callable[[Piece], None],
        *,
        operator: bool = False,
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        for _ in range(PIECES if spec.generation else 0):
            emit(PIECE)
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        future.set_result(Done(INFO.id, FinishReason.STOP, 9, 2, PIECES, SwitchReport(), 0.1, 0.1, 1e6))
        return RequestId(1), future

    def cancel(self, request: RequestId) -> None:
        return None

    def stats(self, *, apps: bool, octaves: bool = False) -> dict[str, object]:
        return {}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[tuple[asyncio.AbstractEventLoop, AsyncClient]]:
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(serve(cast(Backend, FastBackend()), tmp_path / "s"))
    connected = loop.run_until_complete(AsyncClient.connect(tmp_path / "s", app="bench"))
    yield loop, connected
    loop.run_until_complete(connected.close())
    loop.run_until_complete(server.close())
    loop.close()


def test_encode_a_piece(benchmark: BenchmarkFixture) -> None:
    assert benchmark(lambda: encode(replies.piece_frame(5, PIECE)))


def test_read_a_piece(benchmark: BenchmarkFixture) -> None:
    data, decoder = encode(replies.piece_frame(5, PIECE)), Decoder()
    assert benchmark(lambda: replies.piece(decoder.feed(data)[0])) == PIECE


def test_read_1000_pieces_of_one_read(benchmark: BenchmarkFixture) -> None:
    data = encode(replies.piece_frame(1, PIECE)) * PIECES

    def session() -> tuple[tuple[Session], dict[str, object]]:
        made = Session("bench")
        made.receive(encode({"type": "hello", "version": VERSION}))
        made.start(msg.Generate("c"))
        return (made,), {}

    def read(made: Session) -> int:
        made.receive(data)
        return len(made.live()[0].pieces)

    found = benchmark.pedantic(read, setup=session, rounds=50)  # type: ignore[no-untyped-call]
    assert found == PIECES


def test_read_a_request(benchmark: BenchmarkFixture) -> None:
    data, decoder = encode(msg.request_frame(5, REQUEST)), Decoder()
    assert benchmark(lambda: msg.request(decoder.feed(data)[0])) == REQUEST


def test_a_ping_there_and_back(
    benchmark: BenchmarkFixture, client: tuple[asyncio.AbstractEventLoop, AsyncClient]
) -> None:
    loop, connected = client
    benchmark(lambda: loop.run_until_complete(connected.ping()))


def test_1000_pieces_through_server_and_client(
    benchmark: BenchmarkFixture, client: tuple[asyncio.AbstractEventLoop, AsyncClient]
) -> None:
    loop, connected = client

    async def answer() -> int:
        stream = connected.generate("c")
        await stream.done()
        return len(stream.text)

    assert benchmark(lambda: loop.run_until_complete(answer())) == PIECES * len(PIECE.text)


def test_list_1000_contexts(benchmark: BenchmarkFixture, client: tuple[asyncio.AbstractEventLoop, AsyncClient]) -> None:
    loop, connected = client
    assert len(benchmark(lambda: loop.run_until_complete(connected.contexts()))) == 1000
