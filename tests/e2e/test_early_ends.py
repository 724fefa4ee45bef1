"""Requests end early, by a cancel, a killed client or a failing engine: one reply, and contexts stay intact."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmaas.engine.base import BatchItem, Row
from llmaas.engine.fake import FakeEngine
from llmaas.errors import Cancelled, EngineFailed
from llmaas.kv_arrays import KvSlab
from llmaas.records import CHUNK_TOKENS, Message
from tests.support.daemon import HELLO, LONG, SOON, active, answer_to, ask, busy_daemon, serving
from tests.support.loop import on_a_loop


class SlowEngine(FakeEngine):
    """Takes a millisecond for each token of a step, and ten for each chunk that is loaded."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, step_time=lambda tokens: 0.001 * tokens, **options)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        time.sleep(0.01)
        super().load(seq, start, slab)


async def cancelled(stream: Any) -> int:
    """Cancel the call, whose reply must come soon. Returns the number of tokens that were kept."""
    await asyncio.wait_for(stream.cancel(), SOON)
    try:
        done = await stream.done()
    except Cancelled as e:
        assert e.message and e.hint and len(stream.text) == e.n_generated
        return e.n_generated
    raise AssertionError(f"it was to be cancelled but is done: {done}")


@on_a_loop
async def test_a_cancelled_answer_keeps_what_was_streamed(tmp_path: Path) -> None:
    async with serving(tmp_path, engine=SlowEngine) as daemon, daemon.connect("a") as client:
        await client.create(name="c")
        stream = client.generate("c", HELLO, max_tokens=500)
        for _ in range(3):
            await anext(stream)
        kept = await cancelled(stream)
        assert 3 <= kept < 400
        assert stream.text == answer_to("hello", n=kept)
        assert (await client.show("c")).messages[-1].content == stream.text


@on_a_loop
async def test_a_cancelled_prompt_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, engine=SlowEngine) as daemon, daemon.connect("a") as client:
        await client.create(name="c")
        await ask(client, "c")
        before = await client.show("c")
        stream = client.generate("c", [Message("user", "x" * 900)], max_tokens=50)
        await asyncio.sleep(0.15)  # of the 0.9 s that it takes
        assert await cancelled(stream) == 0
        after = await client.show("c")
        assert (after.messages, after.info.n_tokens) == (before.messages, before.info.n_tokens)
        assert await ask(client, "c") == answer_to("hello", "hello")


@on_a_loop
async def test_a_request_that_waits_for_its_turn_is_cancelled_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, engine=SlowEngine, max_running=1) as daemon, daemon.connect("a") as client:
        for name in "cd":
            await client.create(name=name)
        runner = client.generate("c", HELLO, max_tokens=400)
        await anext(runner)
        assert await cancelled(client.generate("d", HELLO, max_tokens=5)) == 0
        assert active(daemon.service.stats()) == 1, "the other one runs on"
        assert await cancelled(runner) > 0
        assert await ask(client, "d") == answer_to("hello")


@on_a_loop
async def test_a_request_that_waits_behind_another_of_its_context_is_cancelled_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, engine=SlowEngine) as daemon, daemon.connect("a") as client:
        await client.create(name="c")
        runner = client.generate("c", HELLO, max_tokens=700)
        await anext(runner)
        assert await cancelled(client.generate("c", HELLO, max_tokens=5)) == 0
        assert active(daemon.service.stats()) == 1, "the other one runs on"
        assert await cancelled(runner) > 0


@on_a_loop
async def test_a_context_whose_switch_is_cancelled_comes_back_whole(tmp_path: Path) -> None:
    async with serving(tmp_path, engine=SlowEngine) as daemon, daemon.connect("a") as client:
        for name in "cd":
            await client.create(name=name)
            await ask(client, name, "x" * 600)
            await daemon.until_idle()
        assert (await client.show("c")).info.tiers[0] == 0, "it should not be in cells"
        stream = client.generate("c", HELLO, max_tokens=5)
        await asyncio.sleep(0.03)  # of the 0.1 s that ten chunks take
        assert await cancelled(stream) == 0
        assert await ask(client, "c") == answer_to("x" * 600, "hello")


@on_a_loop
async def test_a_cancel_that_comes_too_late_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("a") as client:
        await client.create(name="c")
        stream = client.generate("c", HELLO, max_tokens=3)
        done = await stream.done()
        await stream.cancel()
        assert await stream.done() == done and stream.text == answer_to("hello", n=3)


# -- clients that disconnect


KILLED_CLIENT = """
import sys
from pathlib import Path
from llmaas.api.client import Client
client = Client(Path(sys.argv[1]), app="victim")
client.create(name="c")
for piece in client.generate("c", [{"role": "user", "content": "x" * 300}], max_tokens=700):
    print(piece.text, end="", flush=True)
"""


@on_a_loop
async def test_a_client_that_is_killed_in_the_middle_of_a_stream_leaves_nothing_running(tmp_path: Path) -> None:
    async with busy_daemon(tmp_path, engine=SlowEngine) as daemon:
        command = [sys.executable, "-c", KILLED_CLIENT, str(daemon.socket)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
        assert process.stdout is not None
        read = await asyncio.to_thread(process.stdout.read, 5)
        process.kill()
        process.wait()
        process.stdout.close()
        async with daemon.connect("victim") as client:
            late = time.monotonic() + 2.0
            while not (detail := await client.show("c")).messages:
                assert time.monotonic() < late, "its request still runs"
                await asyncio.sleep(0.01)
            answer = detail.messages[-1].content
            assert answer.startswith(read.decode()) and len(answer) < 700
            await asyncio.wait_for(client.generate("c", HELLO, max_tokens=3).done(), SOON)


@on_a_loop
async def test_closing_a_connection_ends_all_its_requests(tmp_path: Path) -> None:
    async with serving(tmp_path, engine=SlowEngine, max_running=2) as daemon:
        async with daemon.connect("many") as client:
            for i in range(6):
                await client.create(name=f"c{i}")
            streams = [client.generate(f"c{i % 6}", [Message("user", "x" * 100)]) for i in range(12)]
            await anext(streams[0])
            assert active(daemon.service.stats()) == 12
        late = time.monotonic() + 2.0
        while active(daemon.service.stats()):
            assert time.monotonic() < late, daemon.service.stats()
            await asyncio.sleep(0.01)


# -- an engine that fails


class FailingEngine(FakeEngine):
    """Fails once, in the ``fail_at``-th call of ``method``: "step" or "load".

    ``refused`` gets the tokens of each load that failed, with those behind it.
    """

    def __init__(self, *args: Any, method: str, fail_at: int, refused: list[int], **options: Any) -> None:
        super().__init__(*args, **options)
        self.method, self.left, self.refused = method, fail_at, refused

    def _maybe_fail(self, method: str) -> None:
        if method == self.method:
            self.left -= 1
            if self.left == 0:
                raise EngineFailed("injected")

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        self._maybe_fail("step")
        return super().step(items, adapter, draw_s=draw_s)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        try:
            self._maybe_fail("load")
            super().load(seq, start, slab)
        except Exception:
            self.refused.append(slab.n_tokens)
            raise


@pytest.mark.parametrize(("method", "at"), [("step", 1), ("step", 9), ("load", 1), ("load", 2), ("load", 5)])
@on_a_loop
async def test_an_engine_that_fails_once_fails_one_call_and_leaves_every_context_whole(
    tmp_path: Path, method: str, at: int
) -> None:
    """The last chunks of a switch, if they were refused together, are given to the engine one by one: no call fails."""
    refused: list[int] = []
    engine = partial(FailingEngine, method=method, fail_at=at, refused=refused)
    async with serving(tmp_path, engine=engine) as daemon, daemon.connect("a") as client:
        failures = 0
        said: dict[str, list[str]] = {}
        for name in "ab":
            await client.create(name=name)
            said[name] = []
        for turn in range(4):
            for name in "ab":  # each takes more than half of the cells, so both come and go
                text = f"{name}{turn} {LONG * (6 if turn == 0 else 1)}"
                before = await client.show(name)
                try:
                    answer = await ask(client, name, text)
                except EngineFailed as e:
                    assert e.message and e.hint
                    failures += 1
                    assert (await client.show(name)).messages == before.messages
                    answer = await ask(client, name, text)
                said[name].append(text)
                assert answer == answer_to(*said[name]), f"context {name} is not whole"
        told = method == "step" or refused == [CHUNK_TOKENS] or len(refused) > 1
        assert failures == told
        assert bool(refused) == (method == "load")
