"""No request holds up the event loop, however large it is: another app's ping comes through meanwhile.

The loop's own CPU time between two of its turns is measured, not the time that passes: a busy machine is no failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from llmaas.api.wire import MAX_FRAME
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.records import Message
from tests.support.cpu_time import at_most, suite_set_aside
from tests.support.daemon import Daemon, Peer, serving
from tests.support.loop import on_a_loop, on_a_loop_for

MOST_CPU_S = 0.05
"""CPU time of the event loop's thread in one turn of the loop."""
MOST_WAIT_S = 5.0
"""Seconds that another app's ping may take on a machine that is very busy."""
REPLY_S = 120.0
"""Seconds that a large request itself may take, with a real model."""
LARGE = MAX_FRAME - 1024
EMPTY = {"role": "user", "content": ""}


def messages(n: int, content: str = "") -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": content} for i in range(n)]


REQUESTS: dict[str, dict[str, Any]] = {
    "many messages that fit": {"op": "append", "context": "c", "messages": messages(400, "hi")},
    "as many messages as are allowed": {"op": "append", "context": "c", "messages": messages(4096)},
    "more messages than are allowed": {"op": "append", "context": "c", "messages": messages(4097)},
    "far more messages": {"op": "append", "context": "c", "messages": [EMPTY] * 100_000},
    "a text that fits": {"op": "append", "context": "c", "messages": messages(1, "x" * 3000)},
    "a text that does not fit": {"op": "append", "context": "c", "messages": messages(1, "x" * 20_000)},
    "a text as large as a frame": {"op": "append", "context": "c", "messages": messages(1, "x y " * (LARGE // 4))},
    "a prompt as large as a frame": {"op": "generate", "context": "c", "prompt": "x" * LARGE, "max_tokens": 1},
    "a system message as large as a frame": {"op": "create", "system": "x" * LARGE},
    "a name as large as a frame": {"op": "create", "name": "x" * LARGE},
    "a context as large as a frame": {"op": "show", "context": "x" * LARGE},
    "an operation as large as a frame": {"op": "x" * LARGE},
    "empty maps": {"op": "append", "context": "c", "messages": [{}] * 1_000_000},
    "many fields": {"op": "ping"} | {f"field-{i}": i for i in range(50_000)},
    "long stop strings": {
        "op": "generate",
        "context": "c",
        "messages": messages(1, "hi"),
        "stop": ["a" * 1023 + chr(98 + i) for i in range(16)],
        "max_tokens": 100,
    },
    "a stop string as large as a frame": {"op": "generate", "context": "c", "stop": ["x" * LARGE], "max_tokens": 1},
    "a grammar as large as a frame": {"op": "generate", "context": "c", "grammar": "x" * LARGE, "max_tokens": 1},
    "a pattern that nests": {
        "op": "generate",
        "context": "c",
        "messages": messages(1, "hi"),
        "json_schema": '{"type": "string", "pattern": "' + "[" * 14_000 + '"}',
        "max_tokens": 1,
    },
    "a full context shown": {"op": "show", "context": "full"},
    "a full context forked": {"op": "fork", "context": "full", "name": "again"},
    "a full context shortened": {"op": "truncate", "context": "again", "n_messages": 600},
    "a full context that shifts": {
        "op": "generate",
        "context": "full",
        "messages": messages(1, "x" * 1000),
        "on_full": "shift",
        "max_tokens": 5,
    },
    "a full context deleted": {"op": "delete", "context": "again"},
    "all contexts": {"op": "list"},
}
"""The largest requests, legal and not, in the order in which they are sent. "full" holds 700 messages."""


class Watchdog:
    """The most CPU time that the loop's thread took in one of the loop's turns since ``reset``."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._last = time.thread_time()
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._turn)

    def reset(self) -> None:
        self.worst = 0.0

    def stop(self) -> None:
        self._next.cancel()

    def _turn(self) -> None:
        now = time.thread_time()
        self.worst, self._last = max(self.worst, now - self._last), now
        # Within a millisecond there are few turns, so what is measured is one of them, or some short ones.
        self._next = self._loop.call_later(0.001, self._turn)


@contextlib.contextmanager
def watched() -> Iterator[Watchdog]:
    with suite_set_aside():
        watchdog = Watchdog()
        try:
            yield watchdog
        finally:
            watchdog.stop()


def send(daemon: Daemon, frame: dict[str, Any]) -> str:
    """Send one request and wait for its end; the code of its error, or "done". On a thread."""
    body = msgpack.packb({"id": 1, **frame})
    with Peer(daemon.socket) as peer:
        peer.sock.settimeout(REPLY_S)
        peer.hello("large")
        with contextlib.suppress(ConnectionError):
            peer.sock.sendall(struct.pack(">I", len(body)) + body)
        while (reply := peer.receive())["type"] == "piece":
            pass
        return str(reply.get("code", "done"))


@asynccontextmanager
async def large_daemon(root: Path, **options: Any) -> AsyncIterator[Daemon]:
    async with serving(root, n_cells=8192, pool_bytes=64 << 20, **options) as daemon:
        async with daemon.connect("large") as client:
            await client.create(name="c")
            for i in range(100):
                await client.create(name=f"other-{i}")
            await client.create(name="full")
            for _ in range(4):
                await client.append("full", [Message("user", "hi")] * 175)
        yield daemon


async def replies_meanwhile(daemon: Daemon) -> dict[str, str]:
    """Send each of the requests, while another app pings: how each ended. None may hold up the loop."""
    told, slow = dict[str, str](), dict[str, float]()
    async with daemon.connect("other") as other:
        await other.ping()
        with watched() as watchdog:
            for name, frame in REQUESTS.items():
                watchdog.reset()
                sending = asyncio.create_task(asyncio.to_thread(send, daemon, frame))
                while not sending.done():
                    await asyncio.wait_for(other.ping(), MOST_WAIT_S)
                    await asyncio.sleep(0.005)
                told[name] = await sending
                if watchdog.worst > MOST_CPU_S:
                    slow[name] = watchdog.worst
    assert slow == {}
    legal = ("that fit", "that fits", "long stop", "a full", "all contexts")
    assert {told[name] for name in REQUESTS if any(word in name for word in legal)} == {"done"}, told
    assert told["far more messages"] == told["empty maps"] == "malformed_frame"
    return told


@on_a_loop
async def test_no_request_holds_up_the_loop(tmp_path: Path) -> None:
    async with large_daemon(tmp_path) as daemon:
        told = await replies_meanwhile(daemon)
        assert told["a text that does not fit"] == told["a prompt as large as a frame"] == "context_too_long"


@pytest.mark.slow  # most of it is the real model, which reads some thousand tokens
@pytest.mark.timeout(900)
@on_a_loop_for(800)
async def test_no_request_holds_up_the_loop_with_a_real_model(tmp_path: Path, model_path: Path) -> None:
    def engine(n_cells: int, n_seqs: int, end_rate: float) -> LlamaEngine:
        return LlamaEngine(model_path, n_cells=n_cells, n_seqs=n_seqs, n_threads=2)

    async with large_daemon(tmp_path, engine=engine, adapters=()) as daemon:
        told = await replies_meanwhile(daemon)
        assert told["a prompt as large as a frame"] in ("context_too_long", "bad_request")


@pytest.mark.parametrize(
    "name", ["as many messages as are allowed", "a text that fits", "a prompt as large as a frame"]
)
@on_a_loop
async def test_the_daemon_stops_while_a_large_request_is_read(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path, n_cells=8192) as daemon:
        async with daemon.connect("large") as client:
            await client.create(name="c")
        sending = [asyncio.create_task(asyncio.to_thread(send, daemon, REQUESTS[name])) for _ in range(4)]
        await asyncio.sleep(0.05)
        with at_most(0.5):
            await asyncio.wait_for(daemon.service.stop(), 10)
        assert {await each for each in sending} <= {"done", "shutting_down", "context_too_long", "cancelled"}
