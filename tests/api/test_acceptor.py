"""Accepting connections, also when the process has no file descriptor left."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from llmaas.api.acceptor import SEND_BUFFER, Acceptor
from tests.support.loop import on_a_loop
from tests.support.scripted import peer, serving, until


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """The process can open nothing more, within the block."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    taken = []
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_descriptors_accepting_pauses_and_goes_on_when_there_are_some(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(path) as (_, server):
            early = await peer(path)
            waiting = [socket.socket(socket.AF_UNIX) for _ in range(5)]
            with no_descriptors_left():
                for sock in waiting:
                    sock.connect(str(path))
                for i in range(20):  # the loop is not kept busy
                    assert (await early.ask(i, "ping"))["type"] == "done"
                    await asyncio.sleep(0.01)
            await until(lambda: len(server.connections) == 6)
            for sock in waiting:
                sock.close()
            late = await peer(path)
            assert (await late.ask(1, "ping"))["type"] == "done"
            await late.close()
            await early.close()

    asyncio.run(main())
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert 1 <= len(said) <= 4 and all("cannot accept" in text for text in said)


@on_a_loop
async def test_the_kernel_keeps_little_of_what_a_peer_does_not_read(tmp_path: Path) -> None:
    made: list[asyncio.Transport] = []

    class Kept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(cast(asyncio.Transport, transport))

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    acceptor = Acceptor(listening, Kept)
    acceptor.start()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "s"))
        while not made:
            await asyncio.sleep(0.001)
        kept = made[0].get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert kept <= 2 * SEND_BUFFER
        made[0].abort()
    acceptor.close()
