"""Bodies of frames: small ones at once, large ones when there is room."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.api.frame_reader import SMALL_FRAME, FrameReader, RoomNeeded
from llmaas.errors import FrameTooLarge

SIZES = st.integers(0, 40) | st.integers(SMALL_FRAME - 2, SMALL_FRAME + 2) | st.integers(0, 60_000)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def feed(reader: FrameReader, data: bytes) -> int:
    """Put in as much as the reader takes at once."""
    into = reader.buffer()
    n = min(len(into), len(data))
    into[:n] = data[:n]
    reader.received(n)
    return n


def bodies(reader: FrameReader) -> list[bytes]:
    found = []
    while (body := reader.next()) is not None:
        if isinstance(body, RoomNeeded):
            assert body.nbytes > SMALL_FRAME
            reader.grant()
        else:
            found.append(bytes(body))
    return found


@given(st.lists(SIZES, max_size=6), st.lists(st.integers(1, 30_000), max_size=8))
def test_every_cut_of_the_stream_gives_the_same_bodies(sizes: list[int], cuts: list[int]) -> None:
    reader = FrameReader(memoryview(bytearray(SMALL_FRAME)), max_frame=1 << 20)
    wanted = [bytes([i]) * size for i, size in enumerate(sizes)]
    data, found = b"".join(map(framed, wanted)), []
    while data:
        cut = cuts.pop() if cuts else len(data)
        data = data[feed(reader, data[:cut]) :]
        found += bodies(reader)
    assert found == wanted
    assert not reader.begun


@given(st.lists(SIZES, max_size=6), st.integers(0, 2**64 - 1))
def test_bodies_may_lie_there_while_others_come(sizes: list[int], turns: int) -> None:
    """Whoever waits for a turn takes them later; a buffer without room would end the connection."""
    reader = FrameReader(memoryview(bytearray(SMALL_FRAME)), max_frame=1 << 20)
    wanted = [bytes([i]) * size for i, size in enumerate(sizes)]
    sent, found = b"".join(map(framed, wanted)), list[bytes]()
    while len(found) < len(wanted):
        turns, receives = turns >> 1, turns % 2
        if sent and reader.wants_more and receives:
            assert len(reader.buffer()) > 0
            sent = sent[feed(reader, sent) :]
        elif isinstance(body := reader.next(), RoomNeeded):
            reader.grant()
        elif body is not None:
            found.append(bytes(body))
        else:
            assert reader.wants_more, "or nothing would ever go on"
            turns |= 1
    assert found == wanted
    assert not reader.begun


def test_a_large_body_takes_no_memory_before_it_is_granted() -> None:
    reader = FrameReader(memoryview(bytearray(SMALL_FRAME)), max_frame=1 << 20)
    feed(reader, framed(b"x" * 100_000))
    assert reader.next() == reader.next() == RoomNeeded(100_000)
    assert reader.begun and len(reader.buffer()) == SMALL_FRAME
    reader.grant()
    assert len(reader.buffer()) == 100_000 - SMALL_FRAME + 4
    assert reader.next() is None


def test_a_body_over_the_limit_is_refused_from_its_length_alone() -> None:
    reader = FrameReader(memoryview(bytearray(SMALL_FRAME)), max_frame=1000)
    feed(reader, struct.pack(">I", 1001))
    with pytest.raises(FrameTooLarge, match="at most 1000"):
        reader.next()


def test_a_frame_is_incomplete_until_its_last_byte() -> None:
    reader = FrameReader(memoryview(bytearray(SMALL_FRAME)), max_frame=1 << 20)
    frame = b"\0\0\0\2\x81\xa0"
    for n, byte in enumerate(frame):
        assert reader.incomplete == (n > 0)
        reader.buffer()[0] = byte
        reader.received(1)
    assert not reader.incomplete and reader.next() == frame[4:]
    reader.buffer()[:5] = b"\0\0\x80\0x"
    reader.received(5)
    assert reader.incomplete and reader.next() is not None
    reader.grant()
    assert reader.incomplete
    left = len(reader.buffer())
    reader.received(left)
    assert left == 0x8000 - 1 and not reader.incomplete
