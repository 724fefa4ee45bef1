"""A connection: its hello, bad bytes, and peers that misbehave."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from pathlib import Path

import msgpack
import pytest

from llmaas.api.caller import Door
from llmaas.api.daemon_address import admin_socket
from llmaas.api.server import Limits
from llmaas.api.wire import Frame, encode
from tests.support.loop import on_a_loop
from tests.support.scripted import HELLO, Peer, collect, peer, serving, until, with_context

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
            "app": f"{os.geteuid()}/mail",
            "limits": {"max_frame": 16384, "max_in_flight": 64, "most_urgent": 0},
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
        ({**HELLO, "client": "x" * 257}, "bad_request", "'client'"),
        ({**HELLO, "client": "x" * 20_000}, "frame_too_large", "before the hello"),
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


async def hello(path: Path, app: str) -> tuple[Peer, Frame]:
    """A peer that said hello, and what it was answered."""
    made = await peer(path, app=None)
    made.send({**HELLO, "app": app})
    answer = await made.frame()
    assert answer is not None
    return made, answer


@on_a_loop
async def test_connections_of_an_app_beyond_its_limit_are_busy_and_others_are_served(path: Path) -> None:
    async with serving(path, limits=Limits(app_connections=2)) as (_, server):
        first, second = await peer(path), await peer(path)
        third, told = await hello(path, "mail")
        assert (told["code"], told["retryable"]) == ("busy", True)
        await third.close()
        other = await peer(path, app="home")
        await first.close()
        await until(lambda: len(server.connections) == 2)
        fourth = await peer(path)
        assert (await fourth.ask(1, "ping"))["type"] == "done"
        for each in (second, fourth, other):
            await each.close()


@on_a_loop
async def test_when_all_places_are_taken_the_app_with_most_gives_an_idle_one_to_another(path: Path) -> None:
    async with serving(path, limits=Limits(max_connections=3)) as (backend, _):
        busy = await with_context(path)
        busy.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "wait"})
        await until(lambda: len(backend.running) == 1)
        idle, used = await peer(path), await peer(path)
        await used.ask(1, "ping")
        newcomer, answer = await hello(path, "home")
        assert answer["type"] == "hello"
        (told,) = await idle.rest()
        assert (told["id"], told["code"], told["retryable"]) == (None, "busy", True)
        another, answer = await hello(path, "mail")  # it has as many as anybody else already
        assert answer["code"] == "busy"
        assert backend.running
        for each in (busy, used, newcomer, idle, another):
            await each.close()


@on_a_loop
async def test_a_place_for_each_of_many_names_locks_nobody_out(path: Path) -> None:
    async with serving(path, limits=Limits(max_connections=4)):
        idle = [await peer(path, app=f"name-{i}") for i in range(4)]
        newcomer, answer = await hello(path, "operator")
        assert answer["type"] == "hello"
        assert [f["code"] for f in await idle[0].rest()] == ["busy"]
        for each in (*idle, newcomer):
            await each.close()


@on_a_loop
async def test_idle_connections_of_many_apps_do_not_lock_the_operator_out(path: Path) -> None:
    async with serving(path) as (_, server):
        idle = [await peer(path, app=f"name-{i}") for i in range(256)]
        assert len(server.connections) == 256
        operators = [await peer(admin_socket(path)) for _ in range(16)]
        for operator in operators:
            assert (await operator.ask(1, "stats"))["type"] == "done"
        for each in (*idle, *operators):
            await each.close()


@on_a_loop
async def test_the_operator_has_places_of_its_own(path: Path) -> None:
    async with serving(path, limits=Limits(max_connections=2)) as (backend, _):
        busy = [await with_context(path, app=f"name-{i}") for i in range(2)]
        for each in busy:
            each.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "wait"})
        await until(lambda: len(backend.running) == 2)
        late, answer = await hello(path, "late")
        assert answer["code"] == "busy"
        operator = await peer(admin_socket(path))
        assert (await operator.ask(1, "stats"))["type"] == "done"
        for each in (*busy, late, operator):
            await each.close()


@on_a_loop
async def test_connections_that_say_nothing_lock_nobody_out(path: Path) -> None:
    async with serving(path, limits=Limits(waiting_connections=8)) as (_, server):
        silent = [await peer(path, app=None) for _ in range(50)]
        client = await peer(path)
        assert (await client.ask(1, "ping"))["type"] == "done"
        await until(lambda: len(server.connections) == 8)
        for each in (*silent, client):
            await each.close()


def begun(nbytes: int) -> bytes:
    """A frame that is announced with ``nbytes`` and ends before its last byte."""
    return struct.pack(">I", nbytes) + b"\x81" + b" " * (nbytes - 2)


@on_a_loop
async def test_a_frame_that_is_begun_must_come_to_its_end(path: Path) -> None:
    async with serving(path, limits=Limits(frame_s=0.1)) as (_, server):
        for nbytes in (100, 100_000):
            slow = await peer(path)
            slow.writer.write(begun(nbytes))
            (told,) = await slow.rest()
            assert (told["code"], "not complete" in told["message"]) == ("bad_request", True)
            await slow.close()
        assert server.shares[Door.APPS].buffers.used == 0
        patient = await peer(path)
        await asyncio.sleep(0.2)
        assert (await patient.ask(1, "ping"))["type"] == "done"
        await patient.close()


@on_a_loop
async def test_begun_frames_hold_no_more_than_their_apps_share_and_its_other_requests_wait(path: Path) -> None:
    limits = Limits(max_frame=100_000, write_buffer=200_000, buffer_bytes=500_000, app_buffer_bytes=200_000)
    async with serving(path, limits=limits) as (_, server):
        hoarders = [await peer(path, app="hoarder") for _ in range(5)]
        for each in hoarders:
            each.writer.write(begun(90_000))
        await until(lambda: server.shares[Door.APPS].buffers.used == 180_000)
        modest = await with_context(path)
        modest.send({"id": 1, "op": "append", "context": "inbox", "prompt": "x" * 80_000})
        assert (await collect(modest, 1))[-1]["type"] == "done"
        hoarders[0].writer.write(b" ")  # two values: malformed, and its room is free
        assert [f["code"] for f in await hoarders[0].rest()] == ["malformed_frame"]
        await asyncio.sleep(0.05)
        assert server.shares[Door.APPS].buffers.used == 180_000  # the third has its turn
        for each in (*hoarders, modest):
            each.writer.transport.abort()
        await until(lambda: not server.connections)
        assert server.shares[Door.APPS].buffers.used == 0


@on_a_loop
async def test_frames_that_stand_still_give_way_to_one_that_moves(path: Path) -> None:
    limits = Limits(max_frame=100_000, write_buffer=200_000, buffer_bytes=200_000, app_buffer_bytes=200_000)
    async with serving(path, limits=limits):
        hoarders = [await peer(path, app=f"hoarder-{i}") for i in range(2)]
        for each in hoarders:
            each.writer.write(begun(90_000))
        modest = await with_context(path)
        began = time.monotonic()
        modest.send({"id": 1, "op": "append", "context": "inbox", "prompt": "x" * 80_000})
        assert (await collect(modest, 1))[-1]["type"] == "done"
        assert time.monotonic() - began < 5
        for each in (*hoarders, modest):
            each.writer.transport.abort()


@on_a_loop
async def test_a_peer_that_does_not_read_for_long_is_dropped_and_its_calls_are_cancelled(path: Path) -> None:
    async with serving(path, limits=Limits(write_s=0.2)) as (backend, server):
        sleeper = await with_context(path)
        sleeper.writer.transport.pause_reading()
        sleeper.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "flood"})
        await until(lambda: backend.cancelled == [1])
        await until(lambda: not server.connections)
        assert server.shares[Door.APPS].buffers.used == 0
        sleeper.writer.transport.abort()


@on_a_loop
async def test_the_end_of_a_peer_is_noticed_while_its_replies_are_unread(path: Path) -> None:
    async with serving(path) as (backend, server):
        client = await with_context(path)
        client.writer.transport.pause_reading()
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "flood"})
        await until(lambda: server.shares[Door.APPS].buffers.used > 0)
        client.writer.write_eof()
        await until(lambda: backend.cancelled == [1])
        client.writer.transport.abort()


@on_a_loop
async def test_large_requests_hold_their_bytes_until_they_end_and_come_in_order(path: Path) -> None:
    async with serving(path) as (backend, server):
        client = await with_context(path)
        frames: list[Frame] = [
            {"id": 1, "op": "generate", "context": "inbox", "prompt": "wait", "stop": ["x" * 100] * 16},
            {"id": 2, "op": "append", "context": "inbox", "prompt": "stubborn", "grammar": "x" * 60_000},
            {"id": 3, "op": "generate", "context": "inbox", "prompt": "wait", "grammar": "x" * 60_000},
            {"id": 4, "op": "cancel", "request": 3},
        ]
        del frames[1]["grammar"]
        client.send(*frames)
        ends = {f["id"]: f.get("code", "done") for f in await collect(client, 2) if f["type"] != "piece"}
        assert ends == {3: "cancelled", 4: "done"}
        await until(lambda: server.shares[Door.APPS].buffers.used == 0)
        client.send({"id": 5, "op": "generate", "context": "inbox", "prompt": "wait", "grammar": "x" * 60_000})
        await until(lambda: len(backend.running) == 3)
        assert server.shares[Door.APPS].buffers.used > 60_000
        await client.close()
        await until(lambda: server.shares[Door.APPS].buffers.used == 0)


WIDE = "\U0001f600"
"""A character that makes Python keep each character of its text in four bytes."""


@on_a_loop
async def test_a_large_request_counts_with_what_it_takes_in_memory(path: Path) -> None:
    limits = Limits(max_frame=100_000, write_buffer=200_000, buffer_bytes=600_000, app_buffer_bytes=200_000)
    async with serving(path, limits=limits) as (backend, server):
        buffers = server.shares[Door.APPS].buffers
        wide, other = await with_context(path), await with_context(path, app="other")
        request = {"op": "generate", "context": "inbox", "prompt": "wait", "json_schema": WIDE + "x" * 60_000}
        wide.send({"id": 1, **request})
        await until(lambda: len(backend.running) == 1)
        assert 240_000 < buffers.used < 245_000
        assert (await wide.frame() or {})["type"] == "piece"
        assert (await wide.ask(2, "ping"))["type"] == "done", "alone it holds up nothing of its app"
        other.send({"id": 1, **request})
        await until(lambda: len(backend.running) == 2)
        third = await with_context(path, app="third")
        assert (await third.ask(1, **request))["code"] == "busy"  # type: ignore[arg-type]
        assert (await third.ask(2, **{**request, "json_schema": "x" * 60_000}))["type"] == "piece"  # type: ignore[arg-type]
        for each in (wide, other, third):
            await each.close()
        await until(lambda: buffers.used == 0)


@on_a_loop
async def test_a_flood_of_requests_takes_turns_with_anothers(path: Path) -> None:
    async with serving(path):
        flooder, other = await peer(path, app="flooder"), await peer(path)
        flooder.send(*({"id": i, "op": "ping"} for i in range(30_000)))
        await asyncio.sleep(0)
        waits = []
        for i in range(20):
            began = time.perf_counter()
            assert (await other.ask(i, "ping"))["type"] == "done"
            waits.append(time.perf_counter() - began)
        assert sorted(waits)[10] < 0.1
        for i in range(30_000):
            assert (await flooder.frame() or {})["id"] == i
        await flooder.close()
        await other.close()
