"""Bad clients of the soaked daemon: peers that send nonsense, and clients that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
import sys
from pathlib import Path

import msgpack

from tests.stress.soak_clients import LATE, Tally


async def talk_nonsense(socket: Path, rng: random.Random, tally: Tally) -> None:
    """One connection that sends what no client would, reads for a moment, and closes. ``deaf`` ones do not read."""
    kind = rng.choice(["noise", "no hello", "half a frame", "too long a frame", "bad requests", "silent", "deaf"])
    reader, writer = await asyncio.open_unix_connection(str(socket))
    with contextlib.suppress(OSError):
        writer.write(_nonsense(kind, rng))
        await writer.drain()
        if kind == "deaf":
            await asyncio.sleep(rng.choice([0.05, 0.5]))
        else:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(1 << 16), 0.3)
        if rng.random() < 0.5:
            writer.transport.abort()
        writer.close()
        await writer.wait_closed()
    tally.note(f"nonsense: {kind}", None)


def _nonsense(kind: str, rng: random.Random) -> bytes:
    hello = _frame({"op": "hello", "version": 1, "app": f"nonsense-{rng.randrange(9)}"})
    name = f"n{rng.randrange(1 << 40)}"
    match kind:
        case "noise":
            return rng.randbytes(rng.randint(1, 5000))
        case "no hello":
            return _frame({"id": 1, "op": "ping"})
        case "half a frame":
            return hello + _frame({"id": 1, "op": "create", "name": name})[: rng.randint(1, 12)]
        case "too long a frame":
            return hello + struct.pack(">I", rng.choice([1 << 31, 0xFFFFFFFF]))
        case "bad requests":
            bad: list[dict[str, object]] = [
                {"id": 1, "op": "fly"},
                {"id": -1, "op": "ping"},
                {"op": "ping"},
                {"id": 2, "op": "cancel", "request": 77},
                {"id": 3, "op": "generate", "context": "nobody", "prompt": "x"},
                {"id": 4, "op": "generate", "context": 5},
                {"id": 5, "op": "truncate", "context": name, "n_tokens": -1},
                {"id": 6, "op": "append", "context": name, "prompt": "x", "priority": 99},
            ]
            return hello + b"".join(_frame(frame) for frame in rng.sample(bad, rng.randint(1, len(bad))))
        case "deaf":
            ask = {"op": "generate", "context": name, "prompt": "Tell me all.", "max_tokens": 800}
            asks = [_frame({"id": n, **ask}) for n in range(2, 6)]
            return hello + _frame({"id": 1, "op": "create", "name": name}) + b"".join(asks)
    return b""


def _frame(frame: dict[str, object]) -> bytes:
    body: bytes = msgpack.packb(frame)
    return struct.pack(">I", len(body)) + body


VICTIM = """
import random, sys
from pathlib import Path
from llmaas.api.client import Client
from llmaas.errors import LlmaasError
rng = random.Random(int(sys.argv[2]))
with Client(Path(sys.argv[1]), app="victim") as client:
    names = [client.create().id for _ in range(3)]
    print("at work", flush=True)
    while True:
        try:
            stream = client.generate(rng.choice(names), prompt="more of it " * rng.randint(1, 30), max_tokens=200)
            for n, piece in enumerate(stream):
                if n > rng.randint(0, 200):
                    stream.cancel()
        except LlmaasError:
            client.truncate(rng.choice(names), n_tokens=0)
"""


async def be_killed(socket: Path, rng: random.Random, tally: Tally) -> None:
    """A client in a process of its own, which is killed while its calls run."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in [str(Path(__file__).parents[2]), *sys.path] if p)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VICTIM, str(socket), str(rng.random())[2:], stdout=asyncio.subprocess.PIPE, env=env
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), LATE)
        assert line == b"at work\n", f"the client did not start its calls: {line!r}"
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        assert process.returncode is None, "the client ended by itself"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    tally.note("killed client", None)
