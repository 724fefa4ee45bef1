"""A daemon whose grammars and schemas are attacks: whoever else uses it goes on, and it can be stopped."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from llmaas.calls import Sampling
from llmaas.errors import BadRequest, Cancelled, LlmaasError
from tests.engine.constraint.test_bombs import BOMBS
from tests.support.daemon import HELLO, SOON, Daemon, answer_to, ask, serving
from tests.support.loop import on_a_loop


def variants(n: int) -> list[Sampling]:
    """As many bombs, no two of them alike, so that none is known already."""
    found = []
    for i in range(n):
        (field, text) = next(iter(list(BOMBS.values())[i % len(BOMBS)].items()))
        spare = 65_536 - len(text.encode())
        found.append(Sampling(**{field: text + " " * min(spare, i)}))  # type: ignore[arg-type]
    return found


async def attack(daemon: Daemon, client: Any, n: int) -> list[asyncio.Task[Any]]:
    """Requests with as many bombs, each in a context of its own."""
    calls = []
    for i, sampling in enumerate(variants(n)):
        await client.create(name=f"bomb{i}")
        calls.append(asyncio.ensure_future(client.generate(f"bomb{i}", HELLO, max_tokens=5, sampling=sampling).done()))
    return calls


@on_a_loop
async def test_others_go_on_while_bombs_are_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("bomber") as bomber, daemon.connect("other") as other:
        await other.create(name="c")
        calls = await attack(daemon, bomber, 2 * len(BOMBS))
        before = time.monotonic()
        assert await asyncio.wait_for(ask(other, "c"), SOON) == answer_to("hello")
        schema = Sampling(json_schema='{"enum": ["yes", "no"]}')
        stream = other.generate("c", HELLO, max_tokens=9, sampling=schema)
        await asyncio.wait_for(stream.done(), SOON)
        assert json.loads(stream.text) in ("yes", "no")
        await asyncio.wait_for(bomber.delete(f"bomb{len(calls) - 1}"), SOON)
        assert time.monotonic() - before < SOON / 2
        for reply in await asyncio.gather(*calls, return_exceptions=True):
            assert not isinstance(reply, LlmaasError) or isinstance(reply, (BadRequest, Cancelled)), reply


@on_a_loop
async def test_a_daemon_stops_while_bombs_are_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("bomber") as bomber:
        calls = await attack(daemon, bomber, 2 * len(BOMBS))
        before = time.monotonic()
        await daemon.service.stop()
        assert time.monotonic() - before < SOON / 2
        for reply in await asyncio.gather(*calls, return_exceptions=True):
            assert not isinstance(reply, BaseException) or isinstance(reply, LlmaasError)
