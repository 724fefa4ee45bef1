"""Both clients: the same operations, and the same errors where no daemon of this version answers."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llmaas.api import operations, questions
from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.api.wire import encode
from llmaas.errors import (
    BadRequest,
    Busy,
    FrameTooLarge,
    LlmaasError,
    MalformedFrame,
    NotServing,
    UnknownAdapter,
    VersionMismatch,
)
from tests.support.loop import on_a_loop
from tests.support.scripted import serving_in_a_thread


def test_both_clients_have_every_operation_with_its_signature_and_documentation() -> None:
    of_streams = {"cancel", "prioritize"}
    functions = [f for f in vars(operations).values() if inspect.isfunction(f)]
    names = {f.__name__ for f in functions if f.__annotations__.get("return", "").startswith("Operation[")}
    for cls in (Client, AsyncClient):
        for name in names - of_streams | {"generate", "ask", "ask_json"}:
            operation = getattr(questions if name.startswith("ask") else operations, name)
            method = getattr(cls, name)
            assert method.__doc__ == operation.__doc__ is not None
            parameters = list(inspect.signature(operation).parameters.values())
            assert list(inspect.signature(method).parameters.values())[1:] == parameters
    assert inspect.signature(Client.generate).return_annotation == "Stream"
    assert inspect.signature(AsyncClient.contexts).return_annotation == "list[ContextInfo]"


@on_a_loop
async def test_both_clients_know_adapters(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail", admin=True) as client:
        assert client.adapter_add("red", Path("/red")).name == "red"

        async with await AsyncClient.connect(path, app="mail", admin=True) as other:
            await other.adapter_add("blue", Path("/blue"))
            assert [info.path for info in await other.adapters()] == ["/red", "/blue"]
            await other.adapter_remove("red")
            assert (await other.create(adapter="blue")).adapter == "blue"
        assert [info.name for info in client.adapters()] == ["blue"]
        client.adapter_remove("blue")
        with pytest.raises(UnknownAdapter):
            client.adapter_remove("blue")


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
