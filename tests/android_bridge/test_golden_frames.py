"""Frames that every client of the wire protocol, and the daemon's own code, read and write alike."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from llmaas.api.wire import Decoder
from llmaas.errors import LlmaasError
from tests.support.drivers import BRIDGE, WAYS, Way, started
from tests.support.loop import on_a_loop

LINES = [
    line.split(" ", 2)
    for line in (BRIDGE / "conformance" / "frames.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
]
FRAMES = [way for way in WAYS if not way.speaks_http]


def test_there_are_frames_of_each_kind() -> None:
    kinds = [kind for kind, *_ in LINES]
    assert kinds.count("good") >= 10 and kinds.count("bad") >= 20 and kinds.count("sent") >= 3
    assert set(kinds) == {"good", "bad", "sent"}


def mutated(draw: random.Random, frame: bytes) -> bytes:
    """The frame with some bytes of its body changed, or its end cut off; its length stays right."""
    body = bytearray(frame[4:])
    for _ in range(draw.randint(1, 4)):
        body[draw.randrange(len(body))] = draw.choice((draw.randrange(256), 0x81, 0x91, 0xA1, 0xC1, 0xD9, 0xDC, 0xFF))
    if draw.random() < 0.3:
        del body[draw.randrange(len(body)) :]
    return struct.pack(">I", len(body)) + body


def verdict(frame: bytes) -> str:
    """What the daemon's own code makes of it: the code of the error, or ""."""
    try:
        Decoder().feed(frame)
    except LlmaasError as error:
        return error.code
    return ""


@pytest.mark.parametrize("way", FRAMES, ids=lambda way: way.name)
@on_a_loop
async def test_a_client_refuses_what_the_daemon_refuses(
    way: Way, drivers: Callable[[Way], list[str]], tmp_path: Path
) -> None:
    draw, good = random.Random(7), [bytes.fromhex(first) for kind, first, _ in LINES if kind == "good"]
    verdicts = set()
    async with started(drivers(way), tmp_path / "none.sock") as driver:
        for _ in range(1500):
            frame = mutated(draw, draw.choice([each for each in good if len(each) > 6]))
            answer = await driver("decode", frame.hex())
            assert (answer[1] if answer[0] == "failed" else "") == verdict(frame), frame.hex()
            verdicts.add(verdict(frame))
    assert verdicts == {"", "malformed_frame"}


@pytest.mark.parametrize("way", FRAMES, ids=lambda way: way.name)
@on_a_loop
async def test_a_client_reads_and_writes_them(way: Way, drivers: Callable[[Way], list[str]], tmp_path: Path) -> None:
    async with started(drivers(way), tmp_path / "none.sock") as driver:
        for kind, first, second in LINES:
            match kind:
                case "good":
                    assert await driver.ok("decode", first) == [second]
                case "bad":
                    await driver.refused(second, "decode", first)
                case _:
                    assert await driver.ok("encode", first) == [second]
