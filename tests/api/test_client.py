"""Both clients against a scripted daemon: answers, errors, cancelling, lost connections, Ctrl-C."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmaas.api import operations
from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.api.server import Limits, serve
from llmaas.api.wire import encode
from llmaas.calls import FinishReason, Piece, Priority, Sampling, Terms
from llmaas.errors import (
    BadRequest,
    Busy,
    Cancelled,
    ContextExists,
    ContextTooLong,
    FrameTooLarge,
    Internal,
    LlmaasError,
    MalformedFrame,
    NotServing,
    ShuttingDown,
    UnknownAdapter,
    UnknownContext,
    VersionMismatch,
)
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.scripted import ScriptedBackend, serving, serving_in_a_thread, until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "llmaas.sock"


# -- both -------------------------------------------------------------------------------------


def test_both_clients_have_every_operation_with_its_signature_and_documentation() -> None:
    of_streams = {"cancel", "prioritize"}
    functions = [f for f in vars(operations).values() if getattr(f, "__module__", "") == operations.__name__]
    names = {f.__name__ for f in functions if f.__annotations__.get("return", "").startswith("Operation[")}
    for cls in (Client, AsyncClient):
        for name in names - of_streams | {"generate"}:
            operation, method = getattr(operations, name), getattr(cls, name)
            assert method.__doc__ == operation.__doc__ is not None
            parameters = list(inspect.signature(operation).parameters.values())
            assert list(inspect.signature(method).parameters.values())[1:] == parameters
    assert inspect.signature(Client.generate).return_annotation == "Stream"
    assert inspect.signature(AsyncClient.contexts).return_annotation == "list[ContextInfo]"


# -- AsyncClient ------------------------------------------------------------------------------


@on_a_loop
async def test_async_every_operation(path: Path) -> None:
    async with serving(path) as (backend, _), await AsyncClient.connect(path, app="mail") as client:
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


@on_a_loop
async def test_both_clients_know_adapters(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        assert client.adapter_add("red", Path("/red")).name == "red"

        async with await AsyncClient.connect(path, app="mail") as other:
            await other.adapter_add("blue", Path("/blue"))
            assert [info.path for info in await other.adapters()] == ["/red", "/blue"]
            await other.adapter_remove("red")
            assert (await other.create(adapter="blue")).adapter == "blue"
        assert [info.name for info in client.adapters()] == ["blue"]
        client.adapter_remove("blue")
        with pytest.raises(UnknownAdapter):
            client.adapter_remove("blue")


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


# -- what answers is no daemon, another daemon, or nobody -------------------------------------


async def connect_async(path: Path, app: str = "mail", timeout: float = 10) -> None:
    await (await AsyncClient.connect(path, app=app, timeout=timeout)).close()


def connect(path: Path, app: str = "mail", timeout: float = 10) -> None:
    Client(path, app=app, timeout=timeout).close()


CONNECTS: list[Callable[..., None]] = [connect, lambda *args, **named: asyncio.run(connect_async(*args, **named))]


@pytest.mark.parametrize("connecting", CONNECTS, ids=["sync", "async"])
def test_nobody_there_is_not_serving(path: Path, connecting: Callable[..., None]) -> None:
    with pytest.raises(NotServing, match="no daemon serves") as caught:
        connecting(path)
    assert "llmaas serve" in caught.value.hint
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotServing, match="no daemon serves"):
        connecting(path)
    with pytest.raises(NotServing, match="cannot connect"):
        connecting(path.with_name("x" * 200))


@pytest.mark.parametrize("connecting", CONNECTS, ids=["sync", "async"])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (encode({"type": "failed", "code": "version_mismatch", "message": "m", "hint": "h"}), VersionMismatch),
        (encode({"type": "hello", "version": 2}), VersionMismatch),
        (encode({"type": "failed", "code": "busy", "message": "m", "hint": "h"}), Busy),
        (encode({"type": "failed", "code": "moon_phase", "message": "m", "hint": "h"}), LlmaasError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", FrameTooLarge),
        (b"\x00\x00\x00\x01\xc1", MalformedFrame),
        (b"", NotServing),
        (None, NotServing),
    ],
)
def test_a_wrong_answer_to_hello_is_a_clear_error(
    path: Path, connecting: Callable[..., None], answer: bytes | None, error: type[LlmaasError]
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        held: list[socket.socket] = []

        def play() -> None:
            peer, _ = listener.accept()
            held.append(peer)
            if answer is not None:
                peer.recv(4096)
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=play)
        thread.start()
        with pytest.raises(error) as caught:
            connecting(path, timeout=0.2 if answer is None else 5)
        thread.join(5)
        held[0].close()
    assert type(caught.value) is error


@pytest.mark.parametrize("connecting", CONNECTS, ids=["sync", "async"])
def test_a_bad_app_name_is_refused_by_the_daemon(path: Path, connecting: Callable[..., None]) -> None:
    with serving_in_a_thread(path), pytest.raises(BadRequest, match="'app'"):
        connecting(path, app="no/slashes")


# -- Client -----------------------------------------------------------------------------------


def test_sync_every_operation(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        assert client.server["model"] == "scripted"
        info = client.create(name="inbox", system="Be brief.")
        assert client.contexts() == [info] == client.contexts(everyone=True)
        assert client.show("inbox").messages == (Message("system", "Be brief."),)
        assert client.fork("inbox", name="copy").name == "copy"
        assert client.truncate("copy", n_messages=0).name == "copy"
        client.delete("copy")
        assert client.append("inbox", [Message("user", "count 0")]).n_tokens == 9
        assert client.stats()["requests"] == 3
        client.ping()
        stream = client.generate("inbox", [Message("user", "count 20")])
        assert [piece.text for piece in stream] == [f"{i} " for i in range(20)]
        assert stream.done.reason is FinishReason.STOP
        assert client.generate("inbox", prompt="count 9").done.n_generated == 3
        with pytest.raises(ContextExists, match="inbox"):
            client.create(name="inbox")
        with pytest.raises(ContextTooLong):
            list(client.generate("inbox", prompt="too long"))
        with pytest.raises(BadRequest, match="seed"):
            client.generate("inbox", sampling=Sampling(seed=-1))
        client.delete(info.id, everyone=True)
        assert client.contexts() == []


def test_sync_cancel_ends_the_stream_with_what_came(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        assert next(stream).text == "so "
        stream.cancel()
        stream.cancel()
        with pytest.raises(Cancelled) as caught:
            _ = stream.done
        assert caught.value.n_generated == 1
        with pytest.raises(Cancelled):
            next(stream)
        client.ping()


def test_sync_a_stream_that_was_left_is_cancelled_by_the_next_call(path: Path) -> None:
    async def cancelled(backend: ScriptedBackend, _: object) -> list[int]:
        return [int(request) for request in backend.cancelled]

    with serving_in_a_thread(path) as there, Client(path, app="mail") as client:
        client.create(name="inbox")
        for piece in client.generate("inbox", prompt="wait"):
            assert piece.text == "so "
            break
        client.ping()
        assert there(cancelled) == [1]
        with client.generate("inbox", prompt="wait"):
            pass
        assert there(cancelled) == [1, 2]


def test_sync_what_is_lost_or_closed_says_so(path: Path) -> None:
    async def stop(_: object, server: Any) -> None:
        await server.close()

    with serving_in_a_thread(path) as there:
        client = Client(path, app="mail")
        client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        next(stream)
        there(stop)
        for _ in range(2):
            with pytest.raises(ShuttingDown):
                next(stream)
        with pytest.raises(ShuttingDown):
            client.ping()
        client.close()
        with pytest.raises(LlmaasError):
            client.ping()
    with serving_in_a_thread(path):
        client = Client(path, app="mail")
        client.close()
        client.close()
        with pytest.raises(NotServing, match="closed"):
            client.ping()


@on_a_loop
async def test_sync_a_daemon_that_dies_is_not_serving(path: Path) -> None:
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom tests.support.scripted import ScriptedBackend, serve\n"
        "async def main():\n    await serve(ScriptedBackend(), Path(sys.argv[1]))\n    print('up', flush=True)\n"
        "    await asyncio.Event().wait()\nasyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"up\n"
        client = Client(path, app="mail")
        client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        next(stream)
        daemon.kill()
        with pytest.raises(NotServing, match="lost"):
            next(stream)
        with pytest.raises(NotServing):
            client.ping()
        client.close()

    await (await serve(ScriptedBackend(), path)).close()


def interrupt(after: float) -> threading.Thread:
    """Ctrl-C for the main thread, in a moment."""
    main = threading.main_thread().ident
    assert main is not None

    def strike() -> None:
        time.sleep(after)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def test_sync_ctrl_c_leaves_the_stream_and_the_connection_usable(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        next(stream)
        strike = interrupt(0.05)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        strike.join()
        stream.cancel()
        with pytest.raises(Cancelled):
            _ = stream.done
        assert [p.text for p in client.generate("inbox", prompt="count 3")] == ["0 ", "1 ", "2 "]


def test_sync_ctrl_c_in_an_append_cancels_it_before_the_next_call(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        client.create(name="inbox")
        strike = interrupt(0.05)
        with pytest.raises(KeyboardInterrupt):
            client.append("inbox", prompt="wait")
        strike.join()
        assert client.append("inbox", prompt="count 0").n_tokens == 9


def test_sync_ctrl_c_at_any_instant_never_loses_a_byte(path: Path) -> None:
    """Interrupts rain down while pieces arrive; iteration goes on after each, and no text is missing."""
    rng = random.Random(7)
    struck = 0
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        client.create(name="inbox")
        for _ in range(40):
            strike = stream = None
            while True:
                try:
                    strike = strike or interrupt(rng.uniform(0, 0.01))
                    stream = stream or client.generate("inbox", prompt="count 200")
                    done = stream.done
                    strike.join()
                    break
                except KeyboardInterrupt:
                    struck += 1
            assert done.reason is FinishReason.STOP
            assert stream.text == "".join(f"{i} " for i in range(200))
    assert struck >= 40
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
