"""Frames of any content and order on the line between host and guest: it goes on, or it is broken; nothing else."""

from __future__ import annotations

import asyncio
import random
import socket as sockets
import struct
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest

from llmaas.vm.line import MOST_OPEN, WINDOW, Line, LineChannel
from llmaas.vm.line_frames import MOST_BYTES, LineBroken, LineKind, encode_line_frame
from tests.support.loop import on_a_loop

SOON = 20.0


def frame(rng: random.Random) -> bytes:
    """One that could be right, more often than not."""
    kind, channel = rng.choice(list(LineKind)), rng.randrange(1, 12)
    payload = rng.randbytes(rng.choice([0, 1, 4, rng.randrange(MOST_BYTES + 1)]))
    if kind is LineKind.OPEN:
        payload = rng.choice([b"apps", b"admin", payload])
    elif kind is LineKind.CREDIT:
        payload = struct.pack(">I", rng.choice([0, 1, WINDOW, 2**32 - 1]))
    elif kind is LineKind.NOTE:
        payload = rng.choice([msgpack.packb({"ready": True}), msgpack.packb({"failed": [1, {}]}), payload])
    data = encode_line_frame(kind, channel, payload)
    return data if rng.random() < 0.95 else data[: rng.randrange(len(data))] + rng.randbytes(3)


@pytest.mark.parametrize("is_host", [True, False], ids=["host", "guest"])
@on_a_loop
async def test_any_frames_leave_the_line_whole_or_broken(is_host: bool) -> None:
    broken = 0
    for seed in range(300):
        rng, opened, notes = random.Random(seed), list[LineChannel](), list[Mapping[str, Any]]()
        ends = sockets.socketpair()
        line = Line(
            *await asyncio.open_unix_connection(sock=ends[0]),
            on_note=notes.append,
            on_open=None if is_host else opened.append,
        )
        running = asyncio.ensure_future(line.run())
        if is_host:
            opened += [channel for channel in (line.open("apps") for _ in range(10)) if channel is not None]
        taking = [asyncio.ensure_future(channel.receive()) for channel in opened[:3]]
        _reader, writer = await asyncio.open_unix_connection(sock=ends[1])
        writer.write(b"".join(frame(rng) for _ in range(rng.randrange(1, 40))))
        for channel in opened[3:6]:
            channel.close()
        writer.write_eof()
        with pytest.raises(LineBroken) as error:
            await asyncio.wait_for(running, SOON)
        broken += "has gone" not in error.value.message
        await asyncio.wait_for(asyncio.gather(*taking), SOON)
        assert all(channel.is_over for channel in opened) and line.n_open <= MOST_OPEN
        assert all(type(note) is dict for note in notes)
        writer.close()
    assert 30 < broken < 300  # some were broken by what came, and some were whole until their end
