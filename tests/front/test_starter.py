"""The process that copies itself for each model: copies are told what they serve, and are waited for; without it, or
if it fails, nothing is copied."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from llmaas.front.started import StartedProcess, start_process
from llmaas.front.starter import Starter
from llmaas.host.adoption import can_adopt
from tests.support.front_house import SOON, timeout
from tests.support.loop import on_a_loop_for

pytestmark = pytest.mark.skipif(not can_adopt(), reason="this system knows no adoption of processes")

COPIES = """
import os, socket, sys, msgpack
from llmaas.cli.starter import copies
asked = copies(int(sys.argv[-1]))
if asked is not None:
    sock = socket.socket(fileno=asked[1])
    sock.send(msgpack.packb(asked[0]))
    sock.recv(1)
    os._exit(3)
"""
COMMAND = (sys.executable, "-c", COPIES)


async def answer(started: StartedProcess | None) -> bytes:
    assert started is not None
    started.sock.setblocking(False)
    async with timeout(SOON):
        return await asyncio.get_running_loop().sock_recv(started.sock, 1000)


async def end_of(started: StartedProcess | None) -> int:
    assert started is not None
    started.sock.close()
    async with timeout(SOON):
        return await started.process.wait()


@on_a_loop_for(180)
async def test_each_copy_is_told_what_to_serve_and_how_it_ended_is_known() -> None:
    starter = Starter(COMMAND)
    assert await starter.copy(["a"]) is None, "it was not prepared"
    await starter.prepare()
    pid = starter.pid
    await starter.prepare()
    assert starter.pid == pid, "one is enough"
    found = await asyncio.gather(*(starter.copy(["--cells=5", f"x{i}"]) for i in range(3)))
    for i, each in enumerate(found):
        assert await answer(each) == b"\x92\xa9--cells=5\xa2x" + str(i).encode()
    first, second, third = (each.process for each in found if each is not None)
    assert len({pid, first.pid, second.pid, third.pid}) == 4
    assert third.returncode is None
    first.kill()
    second.terminate()
    assert [await end_of(each) for each in found] == [-signal.SIGKILL, -signal.SIGTERM, 3]
    first.kill()  # of one that has ended: nothing happens
    await starter.close()
    assert starter.pid is None


@on_a_loop_for(180)
async def test_its_copies_outlive_it_and_another_takes_its_place() -> None:
    starter = Starter(COMMAND)
    await starter.prepare()
    first, kept = starter.pid, await starter.copy(["a"])
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with timeout(SOON):
        while starter.pid is not None:
            await asyncio.sleep(0.01)
    assert await starter.copy(["a"]) is None
    await starter.prepare()
    assert starter.pid not in (None, first)
    again = await starter.copy(["b"])
    assert (await answer(kept), await answer(again)) == (b"\x91\xa1a", b"\x91\xa1b")
    await starter.close()
    assert [await end_of(kept), await end_of(again)] == [3, 3]


@on_a_loop_for(180)
async def test_it_ends_with_whoever_started_it() -> None:
    started = await start_process(COMMAND)
    assert await answer(started) == b"ready"
    assert await end_of(started) == 0


@on_a_loop_for(180)
async def test_one_that_loads_gently_is_not_waited_for(tmp_path: Path) -> None:
    wait = tmp_path / "wait"
    os.mkfifo(wait)
    starter = Starter((sys.executable, "-c", f"open({str(wait)!r}).read()\n{COPIES}"))
    await starter.prepare(gently=True)
    assert starter.pid is not None and await starter.copy(["a"]) is None
    await asyncio.get_running_loop().run_in_executor(None, wait.write_bytes, b"")
    async with timeout(SOON):
        while (copied := await starter.copy(["a"])) is None:
            await asyncio.sleep(0.01)
    assert await answer(copied) == b"\x91\xa1a"
    await starter.close()
    assert await end_of(copied) == 3


@on_a_loop_for(180)
async def test_where_there_is_none_or_it_cannot_be_started_nothing_is_copied(tmp_path: Path) -> None:
    for command in (None, (str(tmp_path / "absent"),)):
        starter = Starter(command)
        await starter.prepare()
        assert starter.pid is None and await starter.copy(["a"]) is None
        await starter.close()


BAD = {
    "it ends": "",
    "another hello": "sock.send(b'hello'); sock.recv(1)",
    "it ends when it is asked": "sock.send(b'ready'); sock.recv(1)",
    "no map": "sock.send(b'ready'); sock.recv(1000); sock.send(b'\\xc1'); sock.recv(1)",
    "no number": "sock.send(b'ready'); sock.recv(1000); sock.send(b'\\x80'); sock.recv(1)",
    "no copy": "sock.send(b'ready'); sock.recv(1000); sock.send(b'\\x81\\xa3pid\\x00'); sock.recv(1)",
    "no such process": "sock.send(b'ready'); sock.recv(1000); sock.send(b'\\x81\\xa3pid\\xce\\x7f\\xff\\xff\\xff'); "
    "sock.recv(1)",
}


@pytest.mark.parametrize("does", BAD.values(), ids=BAD)
@on_a_loop_for(180)
async def test_one_that_fails_is_ended_and_nothing_is_copied(does: str) -> None:
    starter = Starter(
        (sys.executable, "-c", f"import socket, sys\nsock = socket.socket(fileno=int(sys.argv[-1]))\n{does}")
    )
    await starter.prepare()
    async with timeout(SOON):
        assert await starter.copy(["a"]) is None
        while starter.pid is not None:
            await asyncio.sleep(0.01)
    await starter.close()


@on_a_loop_for(180)
async def test_one_with_more_threads_makes_no_copy() -> None:
    more = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    starter = Starter((sys.executable, "-c", more + COPIES))
    await starter.prepare()
    async with timeout(SOON):
        assert await starter.copy(["a"]) is None
    await starter.close()
