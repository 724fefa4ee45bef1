"""Hostile bytes: the decoder knows two faults only, and a live server outlasts every peer."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.client import Client
from llmaas.api.server import Server
from llmaas.api.wire import Decoder, Frame, encode
from llmaas.errors import BadRequest, FrameTooLarge, MalformedFrame
from tests.support.scripted import HELLO, PATIENCE_S, ScriptedBackend, serving_in_a_thread, until

VALID: list[Frame] = [
    HELLO,
    *(
        {"id": i, **fields}
        for i, fields in enumerate(
            [
                {"op": "create", "name": "inbox"},
                {"op": "create", "name": "boom"},
                {"op": "append", "context": "inbox", "messages": [{"role": "user", "content": "count 2"}]},
                {"op": "generate", "context": "inbox", "prompt": "wait", "stop": ["a"], "seed": 1},
                {"op": "generate", "context": "inbox", "prompt": "at once", "temperature": 0.5},
                {"op": "fork", "context": "inbox"},
                {"op": "truncate", "context": "inbox", "n_tokens": 1},
                {"op": "list", "everyone": True},
                {"op": "show", "context": "inbox"},
                {"op": "delete", "context": "inbox"},
                {"op": "cancel", "request": 3},
                {"op": "stats"},
                {"op": "ping"},
            ]
        )
    ),
]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def packed(value: Any) -> bytes:
    try:
        body: bytes = msgpack.packb(value)
    except UnicodeEncodeError:
        body = b"\xa1\xff"
    return struct.pack(">I", len(body)) + body


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid frame with some bytes replaced, left out or put in."""
    data = bytearray(encode(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@st.composite
def twisted(draw: st.DrawFn) -> bytes:
    """A valid frame with some fields replaced, left out or put in: it reaches the operations."""
    frame: dict[Any, Any] = dict(draw(st.sampled_from(VALID[1:])))
    names = st.sampled_from(["id", "op", "context", "messages", "prompt", "name", "request", "stop", "everyone", "x"])
    for name in draw(st.lists(names, max_size=2)):
        if draw(st.booleans()):
            frame[name] = draw(ANYTHING)
        else:
            frame.pop(name, None)
    return packed(frame)


SAID = st.lists(st.binary(max_size=40) | ANYTHING.map(packed) | mutated() | twisted(), min_size=1, max_size=6)


@given(SAID, st.integers(1, 64))
@settings(max_examples=300, deadline=None)
def test_the_decoder_gives_maps_or_one_of_two_faults_and_does_not_mind_the_cut(parts: list[bytes], step: int) -> None:
    data = b"".join(parts)
    outcomes = []
    for size in (len(data) or 1, step, 1):
        decoder, frames, fault = Decoder(), [], None
        try:
            for start in range(0, len(data), size):
                frames += decoder.feed(data[start : start + size])
            decoder.feed(b"")
        except (MalformedFrame, FrameTooLarge) as e:
            fault = (type(e), e.message)
        for frame in frames:
            assert type(frame) is dict
            assert all(type(key) is str for key in frame)
        outcomes.append((repr(frames), fault))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@given(ANYTHING | st.dictionaries(st.sampled_from(["id", "op", "context", "version", "app", "messages"]), ANYTHING))
@settings(max_examples=300)
def test_every_map_is_a_request_or_a_bad_one(value: Any) -> None:
    frame: Frame = value if isinstance(value, dict) else {"id": 1, "op": value}
    for read in (msg.request, msg.request_id):
        try:
            read(frame)
        except BadRequest as e:
            assert encode(replies.failed_frame(None, e))


def converse(path: Path, parts: list[bytes], greet: bool) -> list[Frame]:
    """Say all that, hang up on the sending side, and read what comes until the end."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
        replies: list[Frame] = []
        decoder = Decoder()
        try:
            sock.sendall((encode(HELLO) if greet else b"") + b"".join(parts))
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                replies += decoder.feed(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return replies


def test_a_live_server_outlasts_hostile_peers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "llmaas.sock"

    async def at_rest(backend: ScriptedBackend, server: Server) -> None:
        backend.gate.set()
        await until(lambda: len(server.connections) == 1 and not backend.running and not server.tasks)

    async def unhandled(_: object, __: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: found.append(context))
        return found

    with serving_in_a_thread(path) as there, Client(path, app="witness") as witness:
        faults = there(unhandled)

        @given(SAID, st.booleans())
        @settings(max_examples=200, deadline=None)
        def attack(parts: list[bytes], greet: bool) -> None:
            for reply in converse(path, parts, greet):
                assert reply["type"] in ("hello", "piece", "done", "failed")
            witness.ping()

        attack()
        there(at_rest)
        assert faults == []
    foreseen = "a fault that no one foresaw"  # the scripted one
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert [r for r in errors if not (r.exc_info and foreseen in str(r.exc_info[1]))] == []
