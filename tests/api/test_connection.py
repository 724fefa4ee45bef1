"""A connection: its hello, bad bytes, and peers that misbehave."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from pathlib import Path

import msgpack
import pytest

from llmaas.api.server import Limits
from llmaas.api.wire import Frame, encode
from tests.support.loop import on_a_loop
from tests.support.scripted import HELLO, collect, peer, serving, until, with_context

SMALL = Limits(max_frame=16384, write_buffer=65536)


@on_a_loop
async def test_hello_tells_the_version_the_model_and_the_limits(path: Path) -> None:
    async with serving(path, limits=SMALL):
        client = await peer(path, app=None)
        client.send(HELLO)
        assert await client.frame() == {
            "type": "hello",
            "version": 1,
            "server": "llmaas/0.1.0",
            "model": "scripted",
            "n_ctx": 4096,
            "limits": {"max_frame": 16384, "max_in_flight": 64},
        }
        await client.close()


@pytest.mark.parametrize(
    ("first", "code", "says"),
    [
        ({**HELLO, "version": 2}, "version_mismatch", "version 1"),
        ({**HELLO, "version": 0, "realm": "x"}, "version_mismatch", "version 1"),
        ({**HELLO, "version": "1"}, "bad_request", "'version'"),
        ({**HELLO, "app": "a/b"}, "bad_request", "'app'"),
        ({"op": "hello", "version": 1}, "bad_request", "'app'"),
        ({**HELLO, "realm": "x"}, "bad_request", "'realm'"),
        ({"id": 1, "op": "list"}, "bad_request", "first frame must be a hello"),
        ({}, "bad_request", "first frame must be a hello"),
    ],
)
@on_a_loop
async def test_a_wrong_hello_is_told_and_ends_the_connection(path: Path, first: Frame, code: str, says: str) -> None:
    async with serving(path):
        client = await peer(path, app=None)
        client.send(first, {"id": 2, "op": "ping"})
        (told,) = await client.rest()
        assert (told["id"], told["type"], told["code"]) == (None, "failed", code)
        assert says in told["message"]
        await client.close()
        await (await peer(path)).close()


@on_a_loop
async def test_who_says_nothing_is_sent_away(path: Path) -> None:
    async with serving(path, limits=Limits(hello_s=0.05)):
        client = await peer(path, app=None)
        (told,) = await client.rest()
        assert told["code"] == "bad_request"
        assert "no hello" in told["message"]
        await client.close()
        patient = await peer(path)
        await asyncio.sleep(0.1)
        assert (await patient.ask(1, "ping"))["type"] == "done"
        await patient.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack(">I", 1) + b"\xc1", "malformed_frame"),
        (struct.pack(">I", 0), "malformed_frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame_too_large"),
        (struct.pack(">I", 16385) + b"x" * 3_000_000, "frame_too_large"),
    ],
)
@pytest.mark.parametrize("app", [None, "mail"])
@on_a_loop
async def test_bad_bytes_are_told_even_while_more_are_sent_then_the_connection_ends(
    path: Path, data: bytes, code: str, app: str | None
) -> None:
    async with serving(path, limits=SMALL):
        client, other = await peer(path, app=app), await peer(path)
        client.writer.write(data)
        await client.writer.drain()
        (told,) = await client.rest()
        assert (told["id"], told["type"], told["code"]) == (None, "failed", code)
        await client.close()
        assert (await other.ask(1, "ping"))["type"] == "done"
        await other.close()


@on_a_loop
async def test_requests_before_bad_bytes_are_answered_first(path: Path) -> None:
    async with serving(path):
        client = await peer(path)
        bad = msgpack.packb([1])
        client.send({"id": 1, "op": "ping"})
        client.writer.write(struct.pack(">I", len(bad)) + bad)
        frames = await client.rest()
        assert [(f["id"], f.get("code")) for f in frames] == [(1, None), (None, "malformed_frame")]
        await client.close()


@pytest.mark.parametrize("way", ["close", "abort", "half close", "bad bytes"])
@on_a_loop
async def test_a_peer_that_goes_away_has_its_requests_cancelled(path: Path, way: str) -> None:
    async with serving(path) as (backend, server):
        client, other = await with_context(path), await peer(path)
        client.send(*({"id": i, "op": "generate", "context": "inbox", "prompt": "wait"} for i in (1, 2)))
        other.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "wait"})
        await until(lambda: len(backend.running) == 3)
        if way == "close":
            client.writer.close()
        elif way == "abort":
            client.writer.transport.abort()
        elif way == "half close":
            client.writer.write_eof()
        else:
            client.writer.write(b"\xff" * 8)
        await until(lambda: len(backend.running) == 1)
        assert sorted(backend.cancelled) == [1, 2]
        await client.close()
        await until(lambda: len(server.connections) == 1)
        assert (await other.frame() or {})["type"] == "piece"
        await other.close()


def test_nobody_complains_of_a_peer_that_asks_much_and_is_gone_before_the_first_reply(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(path) as (_, server):
            with socket.socket(socket.AF_UNIX) as hasty:
                hasty.connect(str(path))
                hasty.sendall(encode(HELLO) + b"".join(encode({"id": i, "op": "ping"}) for i in range(20)))
            other = await peer(path)
            await until(lambda: len(server.connections) == 1)
            await other.close()

    asyncio.run(main())
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_reader_that_does_not_read_is_dropped_and_the_others_are_served(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(path, limits=SMALL) as (backend, server):
            sleeper, other = await with_context(path), await peer(path)
            sleeper.writer.transport.pause_reading()
            sleeper.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "flood"})
            await until(lambda: backend.cancelled == [1])
            await until(lambda: len(server.connections) == 1)
            assert (await other.ask(1, "ping"))["type"] == "done"
            sleeper.writer.transport.abort()
            await other.close()

    asyncio.run(main())
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "/mail is dropped" in said


@on_a_loop
async def test_a_reader_that_is_slow_to_read_gets_all_it_asked_for(path: Path) -> None:
    async with serving(path, limits=SMALL) as (backend, _):
        backend.stats_reply = {"text": "x" * 15000}
        client = await peer(path)
        client.writer.transport.pause_reading()
        client.send(*({"id": i, "op": "stats"} for i in range(200)))  # 3 MB of replies, 64 KiB of buffer
        await asyncio.sleep(0.05)
        client.writer.transport.resume_reading()
        assert [f["id"] for f in await collect(client, 200)] == list(range(200))
        await client.close()


@on_a_loop
async def test_connections_beyond_the_limit_are_busy(path: Path) -> None:
    async with serving(path, limits=Limits(max_connections=2)) as (_, server):
        first, second, third = await peer(path), await peer(path), await peer(path, app=None)
        (told,) = await third.rest()
        assert (told["code"], told["retryable"]) == ("busy", True)
        await third.close()
        await first.close()
        await until(lambda: len(server.connections) == 1)
        fourth = await peer(path)
        assert (await fourth.ask(1, "ping"))["type"] == "done"
        await second.close()
        await fourth.close()
