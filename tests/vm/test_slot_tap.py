"""What is seen of a connection at the host's end until its first request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from llmaas.api.replies import done_frame, failed_frame
from llmaas.api.wire import Frame, encode
from llmaas.errors import Busy
from llmaas.vm.slot_tap import SlotTap
from tests.support.loop import on_a_loop

FDS = (71, 72, 73)
HELLO = encode({"type": "hello", "version": 1, "server": "x" * 300})
ASK = encode({"id": 4, "op": "slot"})
PING = encode({"id": 4, "op": "ping"})


def granted(device: object = 2, request: int = 4) -> bytes:
    return encode(done_frame(request, {"version": 1, "nbytes": 9, "generation": 1, "device": device}))


async def first(tap: SlotTap, data: bytes) -> bytes:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await tap.first_request(reader) + await reader.read()


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    rnd = random.Random(seed)
    while data:
        n = rnd.choice((1, 3, 50, 1000))
        yield data[:n]
        data = data[n:]


def passed(tap: SlotTap, data: bytes, seed: int = 0) -> tuple[bytes, list[tuple[bytes, int]]]:
    """All that went down, and what went with a descriptor."""
    parts = [part for piece in pieces(data, seed) for part in tap.down(piece)]
    return b"".join(part for part, _ in parts), [(part, fd) for part, fd in parts if fd is not None]


@pytest.mark.parametrize("seed", range(8))
@on_a_loop
async def test_the_reply_to_the_first_request_has_the_descriptor_and_no_byte_is_changed(seed: int) -> None:
    tap = SlotTap(FDS)
    assert passed(tap, HELLO, seed) == (HELLO, [])
    assert await first(tap, ASK + PING) == ASK + PING
    later = granted(1) + HELLO + b"\xff\xff\xff\xffno frames" * 9
    assert passed(tap, granted() + later, seed) == (granted() + later, [(granted(), 73)])


OTHERS: list[Frame] = [
    failed_frame(4, Busy("all slots are in use")),
    done_frame(4, None),
    done_frame(4, [2]),
    {"id": 4, "type": "piece", "result": {"device": 2}},
]


@pytest.mark.parametrize("reply", [*map(encode, OTHERS), *map(granted, (None, True, -1, 3, "2", 2.0))], ids=repr)
@on_a_loop
async def test_no_reply_but_that_one_has_it(reply: bytes) -> None:
    tap = SlotTap(FDS)
    await first(tap, ASK)
    assert passed(tap, HELLO + reply + granted()) == (HELLO + reply + granted(), [])


@on_a_loop
async def test_another_requests_reply_does_not_have_it_and_the_right_one_still_does() -> None:
    tap = SlotTap(FDS)
    await first(tap, ASK)
    other = granted(1, request=5)
    assert passed(tap, HELLO + other + granted()) == (HELLO + other + granted(), [(granted(), 73)])


FIRST = [
    PING,
    encode({"id": 4, "op": "generate", "prompt": "slot" * 50}),
    encode({"id": "4", "op": "slot"}),
    b"\0\0\0\x05\xc1\xc1\xc1\xc1\xc1",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x40cut",
    b"\0\0",
    b"",
]


@pytest.mark.parametrize("data", FIRST, ids=repr)
@on_a_loop
async def test_another_first_request_gets_none_and_neither_does_a_later_one(data: bytes) -> None:
    tap = SlotTap(FDS)
    assert await first(tap, data + ASK * (len(data) > 10)) == data + ASK * (len(data) > 10)
    assert passed(tap, HELLO + granted()) == (HELLO + granted(), [])


@on_a_loop
async def test_what_is_held_back_is_bounded() -> None:
    tap = SlotTap(FDS)
    await first(tap, ASK)
    long = (1 << 17).to_bytes(4, "big") + b"x" * 9000
    assert passed(tap, long + granted()) == (long + granted(), [])
    assert tap.down(b"y") == [(b"y", None)]


@on_a_loop
async def test_a_machine_without_memories_is_not_looked_into() -> None:
    tap = SlotTap(())
    reader = asyncio.StreamReader()
    assert await tap.first_request(reader) == b"" and tap.down(b"\0\0\0") == [(b"\0\0\0", None)]
