"""A process that waits for its model: taken once, told what it serves, and replaced when it has ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from llmaas.front.spare import SpareProcess, start_process
from tests.support.front_house import SOON, timeout
from tests.support.loop import on_a_loop

SAYS = """
import socket, sys, msgpack
sock = socket.socket(fileno=int(sys.argv[-1]))
data = sock.recv(65536)
if data:
    sock.send(msgpack.packb(msgpack.unpackb(data)["arguments"]))
"""
COMMAND = (sys.executable, "-c", SAYS)


async def answer(sock: object) -> bytes:
    async with timeout(SOON):
        return await asyncio.get_running_loop().sock_recv(sock, 1000)  # type: ignore[arg-type]


@on_a_loop
async def test_it_is_told_what_to_serve_and_no_other_gets_it() -> None:
    spare = SpareProcess(COMMAND)
    assert spare.take(["a"]) is None, "none was prepared"
    await spare.prepare()
    pid = spare.pid
    await spare.prepare()
    assert spare.pid == pid, "one is enough"
    taken = spare.take(["--cells=5", "x"])
    assert taken is not None and taken.process.pid == pid
    assert spare.pid is None and spare.take(["a"]) is None
    assert await answer(taken.sock) == b"\x92\xa9--cells=5\xa1x"
    assert await taken.process.wait() == 0
    taken.sock.close()
    await spare.close()


@on_a_loop
async def test_one_that_was_killed_is_none_and_another_takes_its_place() -> None:
    spare = SpareProcess(COMMAND)
    await spare.prepare()
    first = spare.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with timeout(SOON):
        while spare.pid is not None:
            await asyncio.sleep(0.01)
    assert spare.take(["a"]) is None
    await spare.prepare()
    assert spare.pid not in (None, first)
    pid = spare.pid
    await spare.close()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@on_a_loop
async def test_it_ends_with_whoever_started_it() -> None:
    started = await start_process(COMMAND)
    started.sock.close()
    async with timeout(SOON):
        assert await started.process.wait() == 0


@on_a_loop
async def test_where_there_is_none_or_it_cannot_be_started_nothing_is_taken(tmp_path: Path) -> None:
    for command in (None, (str(tmp_path / "absent"),)):
        spare = SpareProcess(command)
        await spare.prepare()
        assert spare.pid is None and spare.take(["a"]) is None
        await spare.close()
