"""What is no daemon, or a broken one, gets an error out of every client: never a crash, a hang, or much memory."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgpack  # type: ignore[import-untyped,unused-ignore]
import pytest

from tests.support.drivers import WAYS, Way, started
from tests.support.loop import on_a_loop

HELLO = {"type": "hello", "version": 1, "server": "llmaas/9", "model": "fake", "limits": {"max_frame": 4194304}}
FRAMES = [way for way in WAYS if not way.speaks_http]
HTTP = [way for way in WAYS if way.place == "http-tcp"]


def framed(*frames: object) -> bytes:
    bodies = [frame if isinstance(frame, bytes) else msgpack.packb(frame) for frame in frames]
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)


def piece(text: object, id: int = 1) -> dict[str, object]:
    return {"id": id, "type": "piece", "text": text, "tokens": [1]}


FOR_FRAMES: list[tuple[str, bytes, str]] = [
    ("hangs up at once", b"", "not_serving"),
    ("speaks another protocol", b"SSH-2.0-OpenSSH_9.2\r\n", "frame_too_large"),
    ("has another version", framed(HELLO | {"version": 2}), "version_mismatch"),
    ("says no hello", framed({"type": "done", "id": 1, "result": None}), "version_mismatch"),
    (
        "refuses",
        framed({"type": "failed", "id": None, "code": "busy", "message": "too many connections are open"}),
        "busy",
    ),
    ("hangs up after its hello", framed(HELLO), "not_serving"),
    ("hangs up in a frame", framed(HELLO) + framed(piece("x"))[:9], "not_serving"),
    ("announces 4 GB", framed(HELLO) + b"\xff\xff\xff\xff", "frame_too_large"),
    (
        "announces 4 GB as its limit, too",
        framed(HELLO | {"limits": {"max_frame": 2**40}}) + b"\xff\xff\xff\xff",
        "frame_too_large",
    ),
    ("sends no map", framed(HELLO, b"\x91\x01"), "malformed_frame"),
    ("sends no UTF-8", framed(HELLO, b"\x83\xa2id\x01\xa4type\xa5piece\xa4text\xa1\xff"), "malformed_frame"),
    ("announces a long list", framed(HELLO, b"\x81\xa1a\xdd\xff\xff\xff\xff"), "malformed_frame"),
    ("nests deep", framed(HELLO, b"\x81\xa1a" * 5000 + b"\xc0"), "malformed_frame"),
    ("answers what nobody asked", framed(HELLO, piece("x", 77)), "malformed_frame"),
    ("answers an id that is text", framed(HELLO, piece("x") | {"id": "1"}), "malformed_frame"),
    ("sends a piece of no text", framed(HELLO, piece(7)), "malformed_frame"),
    ("sends a reply of no known type", framed(HELLO, {"id": 1, "type": "gift"}), "malformed_frame"),
    (
        "ends the connection",
        framed(HELLO, {"id": None, "type": "failed", "code": "shutting_down", "message": "the daemon stops"}),
        "shutting_down",
    ),
]


@contextmanager
def impostor(place: Path | None, *said: bytes, step: int = 1 << 20) -> Iterator[int]:
    """Says this to everybody, each part after it has read something, and hangs up. The port, without a path. ``step``:
    how many bytes it sends at once, with a millisecond in between."""
    listener = socket.socket(socket.AF_INET if place is None else socket.AF_UNIX)
    listener.bind(("127.0.0.1", 0) if place is None else str(place))
    listener.listen()

    def talk(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            peer.settimeout(5)
            for part in said:
                peer.recv(1 << 16)
                for at in range(0, len(part), step):
                    peer.sendall(part[at : at + step])
                    time.sleep(0.001)

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                threading.Thread(target=talk, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1]) if place is None else 0
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@pytest.mark.parametrize("way", FRAMES, ids=lambda way: way.name)
@on_a_loop
async def test_frames_of_an_impostor(way: Way, drivers: Callable[[Way], list[str]], tmp_path: Path) -> None:
    async with started(drivers(way), "nowhere") as driver:
        for i, (what, said, code) in enumerate(FOR_FRAMES):
            place = tmp_path / f"{i}.sock"
            with impostor(place, said):
                await driver.ok("to", place)
                answer = await driver("ask", "inbox", 8, "hello")
                assert answer[:2] == ["failed", code], f"the daemon {what}: {answer}"


@pytest.mark.parametrize("way", FRAMES, ids=lambda way: way.name)
@on_a_loop
async def test_a_character_that_comes_byte_by_byte(
    way: Way, drivers: Callable[[Way], list[str]], tmp_path: Path
) -> None:
    done = {"context": "0" * 16, "reason": "stop", "n_tokens": 9, "n_prompt": 1, "n_generated": 3, "n_kept": 3}
    done |= {"switch": {"cells": 0, "pool": 0, "disk": 0, "recomputed": 0, "switch_ms": 0.0}, "queue_ms": 0.0}
    done |= {"ttft_ms": 1.0, "decode_tps": 1.0}
    last = framed(piece("Grüße 世"), piece("😀"), {"id": 1, "type": "done", "result": done})

    with impostor(tmp_path / "slow.sock", framed(HELLO), last, step=1):
        async with started(drivers(way), tmp_path / "slow.sock") as driver:
            assert await driver("ask", "inbox", 8, "hello") == ["answer", "stop", "9", "2", "Grüße 世😀"]


LISTEN_AS_NOBODY = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.setuid(65534)
listener.listen()  # from now on the kernel says that this user serves
print("ready", flush=True)
peer, _ = listener.accept()
print(len(peer.recv(1000)), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize("way", FRAMES, ids=lambda way: way.name)
@on_a_loop
async def test_another_users_daemon_is_sent_nothing(
    way: Way, drivers: Callable[[Way], list[str]], tmp_path: Path
) -> None:
    place, pipe = tmp_path / "d.sock", asyncio.subprocess.PIPE
    command = [sys.executable, "-c", LISTEN_AS_NOBODY, str(place)]
    stranger = await asyncio.create_subprocess_exec(*command, stdout=pipe)
    assert stranger.stdout is not None and await stranger.stdout.readline() == b"ready\n"
    async with started(drivers(way), place, token="llmaas_" + "0" * 64) as driver:
        answer = await driver("hello")
        assert answer[:3] == ["failed", "not_trusted", "no"] and "runs as user" in answer[3]
    assert await stranger.stdout.readline() == b"0\n"
    await stranger.wait()


def response(body: bytes, head: str = "", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def events(*data: object) -> bytes:
    return b"".join(
        b"data: %s\n\n" % (each if isinstance(each, bytes) else json.dumps(each, separators=(",", ":")).encode())
        for each in data
    )


def delta(text: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


TOO_LONG = b"data: " + b"x" * (5 << 20)
FOR_HTTP: list[tuple[str, bytes, set[str]]] = [
    ("hangs up at once", b"", {"not_serving"}),
    ("speaks no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", {"not_serving", "malformed_frame"}),
    ("has an endless head", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000, {"not_serving", "malformed_frame"}),
    ("hangs up in its answer", response(events(delta("x"))), {"not_serving"}),
    ("hangs up in a chunk", response(b"ff\r\ndata: ", "Transfer-Encoding: chunked\r\n"), {"not_serving"}),
    (
        "sends a chunk of no size",
        response(b"zz\r\n", "Transfer-Encoding: chunked\r\n"),
        {"not_serving", "malformed_frame"},
    ),
    (
        "fails in its answer",
        response(events(delta("x"), {"error": {"message": "the model failed", "code": "engine_failed"}})),
        {"engine_failed"},
    ),
    ("answers with a page", response(b"<html>", "", "502 Bad Gateway"), {"internal", "not_serving"}),
    ("answers with an error of no known shape", response(b'{"error": 7}', "", "400 Bad Request"), {"bad_request"}),
]
FOR_PARSERS: list[tuple[str, bytes, set[str]]] = [
    ("sends no JSON", response(events(b"{]")), {"malformed_frame"}),
    ("sends no UTF-8", response(b"data: \xff\n\n"), {"malformed_frame", "not_serving"}),
    ("sends a line without end", response(TOO_LONG), {"malformed_frame", "frame_too_large"}),
    ("nests deep", response(events(b'{"a":' * 100_000)), {"malformed_frame"}),
]
"""For clients that read all of JSON."""


@pytest.mark.parametrize("way", HTTP, ids=lambda way: way.name)
@on_a_loop
async def test_responses_of_an_impostor(way: Way, drivers: Callable[[Way], list[str]], tmp_path: Path) -> None:
    cases = FOR_HTTP + ([] if way.name.startswith("sh") else FOR_PARSERS)
    async with started(drivers(way), "http://127.0.0.1:9") as driver:
        for what, said, codes in cases:
            with impostor(None, said) as port:
                await driver.ok("to", f"http://127.0.0.1:{port}")
                answer = await driver("ask", "inbox", 8, "hello")
                assert answer[0] == "failed" and answer[1] in codes, f"the server {what}: {answer}"
