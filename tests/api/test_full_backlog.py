"""Clients that come while the kernel keeps as many callers for the daemon as it may: they wait for their turn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.api.hello import reply_frame
from llmaas.api.wire import encode
from llmaas.errors import NotServing


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    """A socket with as many callers as it may have, none of which was accepted."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(1)
        callers = []
        with pytest.raises(BlockingIOError):
            for _ in range(100):
                callers.append(socket.socket(socket.AF_UNIX))
                callers[-1].setblocking(False)
                callers[-1].connect(str(path))
        yield sock
        for caller in callers:
            caller.close()


def connect(path: Path, timeout: float) -> None:
    Client(path, app="mail", timeout=timeout).close()


def connect_on_a_loop(path: Path, timeout: float) -> None:
    async def main() -> None:
        await (await AsyncClient.connect(path, app="mail", timeout=timeout)).close()

    asyncio.run(main())


@pytest.mark.parametrize("how", [connect, connect_on_a_loop])
def test_a_client_waits_until_it_can_connect(
    path: Path, listener: socket.socket, how: Callable[[Path, float], None]
) -> None:
    accepted: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):  # callers are gone when the test ends
            while True:
                accepted.append(listener.accept()[0])
                accepted[-1].send(encode(reply_frame("late", {}, {})))

    late = threading.Timer(0.1, accept)
    late.daemon = True
    late.start()
    how(path, 20.0)
    assert len(accepted) > 1
    for sock in accepted:
        sock.close()


@pytest.mark.parametrize("how", [connect, connect_on_a_loop])
def test_a_client_does_not_wait_for_ever(
    path: Path, listener: socket.socket, how: Callable[[Path, float], None]
) -> None:
    with pytest.raises(NotServing, match=r"within 0\.1 s"):
        how(path, 0.1)
