"""The real starter: with all packages loaded it has one thread, and its copies serve by arguments as a process does."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgpack  # type: ignore[import-untyped,unused-ignore]
import pytest

from llmaas.front.process import python_command
from llmaas.front.starter import Starter
from llmaas.host.adoption import can_adopt
from tests.support.front_house import timeout
from tests.support.loop import on_a_loop_for

pytestmark = pytest.mark.skipif(not can_adopt(), reason="this system knows no adoption of processes")
_SOON = 60.0
"""Seconds: packages take one, on a machine that does nothing else."""


@pytest.mark.parametrize("gently", [False, True])
@on_a_loop_for(180)
async def test_a_copy_of_the_real_starter_says_why_it_cannot_serve(gently: bool, tmp_path: Path) -> None:
    starter = Starter(python_command("serve"))
    await starter.prepare(gently=gently)
    wrong = ["--served-as=m", f"--model={tmp_path / 'absent.gguf'}", f"--data-dir={tmp_path / 'data'}", "--models=none"]
    async with timeout(_SOON):
        while (copy := await starter.copy(wrong)) is None:
            assert starter.pid is not None
            await asyncio.sleep(0.05)
        assert os.getpriority(os.PRIO_PROCESS, copy.process.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        copy.sock.setblocking(False)
        told = msgpack.unpackb(await asyncio.get_running_loop().sock_recv(copy.sock, 65536))
        assert (told["t"], "absent.gguf" in told["message"]) == ("failed", True), told
        assert await copy.process.wait() == 1
    copy.sock.close()
    await starter.close()
