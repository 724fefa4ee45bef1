"""Frames that hold much: packed and unpacked as by msgpack, without a copy of it."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.api.bulk import BULK, look_through, packed_parts
from llmaas.api.record_maps import from_map
from llmaas.api.transfer_records import ChunkPiece
from llmaas.api.wire import MAX_FRAME, Decoder, encode, encode_bulk, read_body
from llmaas.errors import BadRequest, FrameTooLarge, MalformedFrame

LONG = bytes(range(256)) * (BULK // 256)
HOLDER = {"id": 7, "pieces": [{"data": LONG, "proof": b"p"}, {"data": LONG + b"x"}], "text": "ä", "small": LONG[:-1]}
BYTES = st.sampled_from([b"", b"\xd6\x00\x00\x00\x00\x00", LONG[:-1], LONG, LONG + LONG])
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text("aä€")
VALUES = st.recursive(
    SCALARS | BYTES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3)
)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@given(VALUES)
def test_parts_are_what_msgpack_packs(value: Any) -> None:
    assert b"".join(packed_parts(value)) == msgpack.packb(value)


def test_long_bytes_are_parts_themselves_and_others_are_not() -> None:
    view = memoryview(LONG)
    parts = packed_parts({"a": LONG, "b": [view], "c": LONG[:-1]})
    assert parts[1] is LONG and parts[3] is view and len(parts) == 5


@given(st.dictionaries(st.text("ab", max_size=3), VALUES, max_size=3))
def test_views_are_what_was_packed(frame: dict[str, Any]) -> None:
    body = bytearray(msgpack.packb(frame))
    try:
        plain = read_body(body)
    except MalformedFrame:  # nested too deep
        with pytest.raises(MalformedFrame):
            read_body(body, views=True)
        return
    assert read_body(body, views=True) == plain == frame


def test_long_bytes_are_views_of_the_body_that_nobody_can_write_to() -> None:
    body = bytearray(msgpack.packb(HOLDER))
    first, second = read_body(body, views=True)["pieces"]
    assert isinstance(first["data"], memoryview) and first["data"].obj is body and first["data"].readonly
    assert first["data"] == LONG and second["data"] == LONG + b"x"
    assert isinstance(read_body(body)["pieces"][0]["data"], bytes)
    assert isinstance(read_body(body, views=True)["small"], bytes) and read_body(body, views=True)["small"] == LONG[:-1]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (msgpack.packb({"a": LONG, "b": msgpack.ExtType(0, bytes(4))}), "what stands for long bytes, made by a peer"),
        (msgpack.packb({"a": LONG, "b": msgpack.ExtType(5, b"")}), "an extension"),
        (msgpack.packb({"a": LONG})[:-1], "cut short within the bytes"),
        (msgpack.packb({"a": LONG, "b": 1.5})[:-3], "cut short behind them"),
        (msgpack.packb({"a": LONG}) + b"\x80", "two values"),
        (msgpack.packb({LONG: 1}), "a key of long bytes"),
        (msgpack.packb({"a": [{LONG: 1}]}), "a key of long bytes, deeper"),
        (msgpack.packb([LONG]), "a list"),
        (msgpack.packb({"a": LONG, "b": "xy"}).replace(b"xy", b"\xff\xff"), "text that is no UTF-8"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff" + LONG, "4 GB, announced"),
    ],
)
@pytest.mark.parametrize("most", [None, 100])
def test_a_body_that_is_no_plain_map_is_malformed_also_where_views_are_made(
    body: bytes, why: str, most: int | None
) -> None:
    with pytest.raises(MalformedFrame):
        read_body(bytearray(body), most, views=True)
    with pytest.raises(MalformedFrame):
        read_body(bytearray(body), most)


def test_a_body_that_announces_too_many_values_is_refused_whatever_long_bytes_it_holds() -> None:
    body = msgpack.packb({"a": LONG, "b": [0] * 100})
    with pytest.raises(MalformedFrame, match="more than 100 values"):
        read_body(body, 100, views=True)
    assert read_body(body, 105, views=True)["a"] == LONG


def test_of_a_body_of_many_values_nothing_is_a_view() -> None:
    long = list[tuple[int, int, int]]()
    assert look_through(msgpack.packb([0] * 5000 + [LONG]), None, long) and not long
    assert read_body(msgpack.packb({"a": [0] * 5000, "b": LONG}), views=True)["b"] == LONG


@pytest.mark.parametrize("first", [1, 4, 100, BULK + 10])
def test_a_large_body_is_received_where_it_lies(first: int) -> None:
    data, decoder = framed(msgpack.packb(HOLDER)) + framed(b"\x80"), Decoder()
    assert decoder.room() is None and decoder.feed(data[:first]) == []
    at, frames = first, list[Any]()
    while (room := decoder.room()) is not None:
        n = min(len(room), 50_000)
        room[:n] = data[at : at + n]
        frames += decoder.filled(n)
        at += n
    frames += decoder.feed(data[at:])
    assert frames == [HOLDER, {}]


def test_a_large_body_that_is_malformed_ends_the_stream() -> None:
    decoder, body = Decoder(), b"\x81\xa1a\xc1" + LONG
    decoder.feed(framed(body)[:100])
    room = decoder.room()
    assert room is not None
    room[:] = body[-len(room) :]
    with pytest.raises(MalformedFrame):
        decoder.filled(len(room))
    with pytest.raises(MalformedFrame):
        decoder.feed(b"")
    assert decoder.room() is None


def test_a_frame_in_parts_is_the_same_frame() -> None:
    assert b"".join(encode_bulk(HOLDER)) == encode(HOLDER)
    with pytest.raises(FrameTooLarge):
        encode_bulk({"data": bytes(MAX_FRAME)})
    with pytest.raises(BadRequest):
        encode_bulk({"text": "\ud800", "data": LONG})


def test_a_field_of_bulk_keeps_a_view_and_one_of_bytes_has_its_own() -> None:
    view = memoryview(LONG)
    piece = from_map(ChunkPiece, {"index": 0, "n_bytes": len(LONG), "data": view, "proof": view})
    assert piece.data is view and type(piece.proof) is bytes and piece.proof == LONG
    with pytest.raises(BadRequest, match="'data' must be bytes"):
        from_map(ChunkPiece, {"index": 0, "n_bytes": 1, "data": "x"})
