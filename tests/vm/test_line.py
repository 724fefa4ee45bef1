"""Channels on the line: order, back-pressure, ends, and sides that break the rules."""

from __future__ import annotations

import asyncio
import random
import socket as sockets
import struct
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from llmaas.errors import LlmaasError
from llmaas.vm.line import MOST_OPEN, WINDOW, Line, LineChannel
from llmaas.vm.line_frames import MOST_BYTES, LineBroken, LineDecoder, LineKind, encode_line_frame
from tests.support.loop import on_a_loop
from tests.support.vm_line import lines

SOON = 20.0


async def all_of(channel: LineChannel) -> bytes:
    found = b""
    while data := await channel.receive():
        found += data
    return found


async def echo(channel: LineChannel) -> None:
    while data := await channel.receive():
        await channel.send(data)
    channel.close()


@on_a_loop
async def test_each_channel_gets_its_own_bytes_in_order() -> None:
    tasks: list[asyncio.Future[None]] = []
    async with lines(lambda channel: tasks.append(asyncio.ensure_future(echo(channel)))) as (host, guest):

        async def talk(seed: int) -> None:
            data, channel = random.Random(seed).randbytes(5 * WINDOW + seed), host.open("apps")
            assert channel is not None
            sending = asyncio.ensure_future(channel.send(data))
            found = b""
            while len(found) < len(data):
                found += await channel.receive()
            await sending
            channel.close()
            assert found == data

        await asyncio.wait_for(asyncio.gather(*(talk(seed) for seed in range(8))), SOON)
        await asyncio.wait_for(asyncio.gather(*tasks), SOON)
        assert (host.n_open, guest.n_open) == (0, 0)


@on_a_loop
async def test_what_was_sent_before_a_close_arrives_before_it() -> None:
    async def say(channel: LineChannel) -> None:
        await channel.send(b"x" * (WINDOW - 1))
        channel.close()

    async with lines(lambda channel: tasks.append(asyncio.ensure_future(say(channel)))) as (host, _guest):
        tasks: list[asyncio.Future[None]] = []
        channel = host.open("admin")
        assert channel is not None
        assert await asyncio.wait_for(all_of(channel), SOON) == b"x" * (WINDOW - 1)
        with pytest.raises(ConnectionResetError):
            await channel.send(b"more")
        channel.close()
        channel.close()
        assert channel.door == "admin" and host.n_open == 0


@on_a_loop
async def test_a_channel_that_nobody_reads_holds_up_no_other_and_a_bounded_number_of_bytes() -> None:
    opened: list[LineChannel] = []
    async with lines(opened.append) as (host, _):
        deaf, other = host.open("apps"), host.open("apps")
        assert deaf is not None and other is not None
        stuck = asyncio.ensure_future(deaf.send(bytes(10 * WINDOW)))
        await asyncio.wait_for(other.send(b"hello"), SOON)
        other.close()
        while len(opened) < 2:
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(all_of(opened[1]), SOON) == b"hello"
        assert not stuck.done()
        # Its reader takes it after all: more than the window, which had to be given back.
        taken = 0
        while taken < 10 * WINDOW:
            taken += len(await asyncio.wait_for(opened[0].receive(), SOON))
        await asyncio.wait_for(stuck, SOON)


@on_a_loop
async def test_small_pieces_that_nobody_takes_need_no_more_memory_than_their_bytes() -> None:
    ends, all_there = sockets.socketpair(), asyncio.Event()
    host = Line(*await asyncio.open_unix_connection(sock=ends[0]), on_note=lambda note: all_there.set())
    running, channel = asyncio.ensure_future(host.run()), host.open("apps")
    assert channel is not None
    _, writer = await asyncio.open_unix_connection(sock=ends[1])
    frames = encode_line_frame(LineKind.DATA, 1, b"xy") * 1024
    tracemalloc.start()
    for _ in range(WINDOW // 2048):
        writer.write(frames)
        await writer.drain()
    writer.write(encode_line_frame(LineKind.NOTE, 0, b"\x80"))
    await asyncio.wait_for(all_there.wait(), SOON)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 5 * WINDOW
    assert len(await channel.receive()) == MOST_BYTES
    writer.close()
    with pytest.raises(LineBroken):
        await asyncio.wait_for(running, SOON)


@on_a_loop
async def test_a_sender_that_waits_learns_of_the_end() -> None:
    opened: list[LineChannel] = []
    async with lines(opened.append) as (host, _):
        channel = host.open("apps")
        assert channel is not None
        stuck = asyncio.ensure_future(channel.send(bytes(2 * WINDOW)))
        while not opened:
            await asyncio.sleep(0.01)
        opened[0].close()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(stuck, SOON)


@on_a_loop
async def test_the_end_of_the_line_ends_all_channels() -> None:
    ends = sockets.socketpair()
    host = Line(*await asyncio.open_unix_connection(sock=ends[0]), on_note=lambda note: None)
    running, channel = asyncio.ensure_future(host.run()), host.open("apps")
    assert channel is not None
    waiting = asyncio.ensure_future(channel.receive())
    await asyncio.sleep(0)
    ends[1].close()
    assert await asyncio.wait_for(waiting, SOON) == b""
    with pytest.raises(LineBroken, match="line"):
        await asyncio.wait_for(running, SOON)
    later = host.open("apps")
    assert later is not None and later.is_over


@on_a_loop
async def test_channels_are_counted() -> None:
    async with lines(lambda channel: None) as (host, _):
        channels = [host.open("apps") for _ in range(MOST_OPEN)]
        assert None not in channels and host.open("apps") is None


@on_a_loop
async def test_a_note_is_for_the_other_side_itself() -> None:
    notes: list[Mapping[str, Any]] = []
    async with lines(lambda channel: None, notes.append) as (host, guest):
        guest.note({"ready": True})
        while not notes:
            await asyncio.sleep(0.01)
        assert notes == [{"ready": True}]
        with pytest.raises(LlmaasError):
            host.note({"failed": "x" * MOST_BYTES})


CREDIT = struct.Struct(">I")
BAD_OF_A_GUEST = {
    "it opens a channel": [(LineKind.OPEN, 2, b"apps")],
    "a channel that was never opened": [(LineKind.DATA, 7, b"x")],
    "the channel of notes": [(LineKind.DATA, 0, b"x")],
    "more than the window": [(LineKind.DATA, 1, bytes(MOST_BYTES))] * (WINDOW // MOST_BYTES + 1),
    "more credit than was used": [(LineKind.CREDIT, 1, CREDIT.pack(1))],
    "credit that is no number": [(LineKind.CREDIT, 1, b"")],
    "closed twice": [(LineKind.CLOSE, 1, b"")] * 2,
    "data after the end": [(LineKind.CLOSE, 1, b""), (LineKind.DATA, 1, b"x")],
    "a note that is none": [(LineKind.NOTE, 0, b"\xc1")],
}


@pytest.mark.parametrize("frames", BAD_OF_A_GUEST.values(), ids=BAD_OF_A_GUEST)
@on_a_loop
async def test_a_guest_that_breaks_the_rules_ends_the_line(frames: list[tuple[LineKind, int, bytes]]) -> None:
    ends = sockets.socketpair()
    host = Line(*await asyncio.open_unix_connection(sock=ends[0]), on_note=lambda note: None)
    running, channel = asyncio.ensure_future(host.run()), host.open("apps")
    _, writer = await asyncio.open_unix_connection(sock=ends[1])
    writer.write(b"".join(encode_line_frame(*frame) for frame in frames))
    with pytest.raises(LineBroken):
        await asyncio.wait_for(running, SOON)
    assert channel is not None and channel.is_over
    writer.close()


BAD_OF_A_HOST = {
    "no door": [(LineKind.OPEN, 1, b"back")],
    "a number twice": [(LineKind.OPEN, 1, b"apps")] * 2,
    "too many": [(LineKind.OPEN, i + 1, b"apps") for i in range(MOST_OPEN + 1)],
}


@pytest.mark.parametrize("frames", BAD_OF_A_HOST.values(), ids=BAD_OF_A_HOST)
@on_a_loop
async def test_a_host_that_breaks_the_rules_ends_the_line(frames: list[tuple[LineKind, int, bytes]]) -> None:
    ends, opened = sockets.socketpair(), list[LineChannel]()
    guest = Line(*await asyncio.open_unix_connection(sock=ends[1]), on_note=lambda note: None, on_open=opened.append)
    running = asyncio.ensure_future(guest.run())
    _, writer = await asyncio.open_unix_connection(sock=ends[0])
    writer.write(b"".join(encode_line_frame(*frame) for frame in frames))
    with pytest.raises(LineBroken):
        await asyncio.wait_for(running, SOON)
    assert all(channel.is_over for channel in opened) and len(opened) <= MOST_OPEN
    writer.close()


@on_a_loop
async def test_what_is_under_way_to_a_channel_that_was_closed_is_dropped() -> None:
    """The two sides close at once; neither breaks a rule."""
    ends = sockets.socketpair()
    host = Line(*await asyncio.open_unix_connection(sock=ends[0]), on_note=lambda note: None)
    running, channel = asyncio.ensure_future(host.run()), host.open("apps")
    assert channel is not None
    channel.close()
    reader, writer = await asyncio.open_unix_connection(sock=ends[1])
    for frame in ((LineKind.DATA, 1, b"late"), (LineKind.CREDIT, 1, CREDIT.pack(0)), (LineKind.CLOSE, 1, b"")):
        writer.write(encode_line_frame(*frame))
    while host.n_open:
        await asyncio.sleep(0.01)
    assert not running.done() and await channel.receive() == b""
    decoder, kinds = LineDecoder(), []
    while LineKind.CLOSE not in kinds:
        kinds += [frame.kind for frame in decoder.feed(await asyncio.wait_for(reader.read(1000), SOON))]
    writer.close()
    with pytest.raises(LineBroken):
        await asyncio.wait_for(running, SOON)
