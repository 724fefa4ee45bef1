"""Framing: every cut of the stream gives the same frames, and bad bytes give one clear fault."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.api.wire import MAX_DEPTH, MAX_FRAME, MAX_ITEMS, MAX_REQUEST_VALUES, Decoder, Frame, encode, read_body
from llmaas.errors import BadRequest, FrameTooLarge, MalformedFrame

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner, max_size=4), max_leaves=8
).filter(lambda value: depth(value) < MAX_DEPTH)
FRAMES = st.dictionaries(st.text("abc", max_size=5), VALUES, max_size=5)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def nested(levels: int) -> Frame:
    value: Frame = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_frames_survive_any_cut_of_the_stream(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(map(encode, frames))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    decoder = Decoder()
    found = [f for start, end in itertools.pairwise(edges) for f in decoder.feed(data[start:end])]
    assert found == frames


def test_a_frame_is_a_big_endian_length_and_a_map() -> None:
    assert encode({"a": 1}) == b"\x00\x00\x00\x04\x81\xa1a\x01"


def test_byte_after_byte_gives_the_frame_with_its_last_byte() -> None:
    decoder, data = Decoder(), encode({"op": "ping", "id": 1})
    assert [decoder.feed(data[i : i + 1]) for i in range(len(data))] == [[]] * (len(data) - 1) + [
        [{"op": "ping", "id": 1}]
    ]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "empty"),
        (b"\xc1", "a byte that msgpack never uses"),
        (b"\x81", "cut short"),
        (b"\x80\x80", "two values"),
        (b"\x90", "a list"),
        (b"\x01", "a number"),
        (b"\xc0", "nil"),
        (msgpack.packb({1: 2}), "a key that is a number"),
        (msgpack.packb({b"a": 2}), "a key of bytes"),
        (msgpack.packb({"a": {b"": 2}}), "a key of no bytes, deeper"),
        (msgpack.packb({"a": [{b"": 2}]}), "a key of no bytes in a list"),
        (b"\x81\x91\x01\x02", "a key that is a list"),
        (b"\x81\xa1\xff\x01", "a key that is no UTF-8"),
        (b"\x81\xa1a\xa1\xff", "text that is no UTF-8"),
        (b"\x81\xa1a\xd4\x05\x00", "an extension"),
        (b"\x81\xa1a\xc7\x00\x05", "an empty extension"),
        (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "a timestamp"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "a list of 4 billion items, announced"),
        (b"\x81\xa1a\xdf\xff\xff\xff\xff", "a map of 4 billion items, announced"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "a string of 4 GB, announced"),
        (b"\x91" * 3000 + b"\x01", "lists in lists, deeper than msgpack goes"),
        (msgpack.packb({"a": [0] * (MAX_ITEMS + 1)}), "too many items"),
    ],
)
def test_a_body_that_is_no_plain_map_is_malformed(body: bytes, why: str) -> None:
    with pytest.raises(MalformedFrame):
        Decoder().feed(framed(body))


def n_values(value: object) -> int:
    match value:
        case dict():
            return 1 + sum(n_values(key) + n_values(item) for key, item in value.items())
        case list():
            return 1 + sum(map(n_values, value))
        case _:
            return 1


@given(FRAMES)
def test_a_body_with_one_value_more_than_allowed_is_refused(frame: Frame) -> None:
    n = n_values(frame)
    body = msgpack.packb(frame)
    assert read_body(body, n) == frame
    with pytest.raises(MalformedFrame, match=f"more than {n - 1} values"):
        read_body(body, n - 1)


@pytest.mark.parametrize(
    "body",
    [
        b"\x81\xa1a\xdd\x00\x3f\xff\xf0" + b"\x80" * (1 << 22),  # as many maps as fit
        b"\x81\xa1a" + b"\xdd\x00\x00\x3f\xf0" * 1000,  # lists in lists, none of which is there
        b"\x81\xa1a\xdf\xff\xff\xff\xff",
        msgpack.packb({"a": [[{}] * 1000] * 50}),
    ],
)
def test_too_many_values_are_refused_before_anything_is_made_of_them(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrame, match="more than 32768 values"):
            read_body(body, MAX_REQUEST_VALUES)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_nesting_is_bounded() -> None:
    assert Decoder().feed(encode(nested(MAX_DEPTH))) == [nested(MAX_DEPTH)]
    with pytest.raises(MalformedFrame, match="deep"):
        Decoder().feed(encode(nested(MAX_DEPTH + 1)))


def test_a_frame_over_the_limit_is_refused_from_its_length_alone() -> None:
    with pytest.raises(FrameTooLarge, match="at most 1000"):
        Decoder(max_frame=1000).feed(struct.pack(">I", 1001))
    with pytest.raises(FrameTooLarge):
        Decoder().feed(struct.pack(">I", MAX_FRAME + 1))


def test_a_frame_of_just_the_limit_passes_both_ways() -> None:
    frame = {"a": "x" * 1000}
    size = len(encode(frame)) - 4
    assert Decoder(max_frame=size).feed(encode(frame, max_frame=size)) == [frame]
    with pytest.raises(FrameTooLarge):
        encode(frame, max_frame=size - 1)
    with pytest.raises(FrameTooLarge):
        Decoder(max_frame=size - 1).feed(encode(frame))


@pytest.mark.parametrize("step", [1000, 65_536, 70_000, 1 << 20])
def test_large_frames_survive_any_cut_between_small_ones(step: int) -> None:
    frames: list[Frame] = [
        {"a": 1},
        {"a": bytes(200_000)},
        {"b": bytes(range(256)) * 300},
        {"c": 2},
        {"a": bytes(70_000)},
    ]
    data, decoder = b"".join(map(encode, frames)), Decoder()
    found = [f for start in range(0, len(data), step) for f in decoder.feed(memoryview(data)[start : start + step])]
    assert found == frames


def test_a_large_body_that_is_no_map_is_a_fault_and_what_follows_is_not_read() -> None:
    decoder, data = Decoder(), framed(b"\xc1" + bytes(100_000))
    assert decoder.feed(data[:70_000]) == []
    with pytest.raises(MalformedFrame):
        decoder.feed(data[70_000:] + encode({"id": 1}))
    with pytest.raises(MalformedFrame):
        decoder.feed(encode({"id": 2}))


def test_frames_before_a_fault_are_given_first_however_the_stream_is_cut() -> None:
    good = encode({"id": 1})
    together, apart = Decoder(), Decoder()
    assert together.feed(good + good + framed(b"\xc1") + good) == [{"id": 1}, {"id": 1}]
    assert apart.feed(good) + apart.feed(good) == [{"id": 1}, {"id": 1}]
    for decoder in (together, apart):
        with pytest.raises(MalformedFrame):
            decoder.feed(b"" if decoder is together else framed(b"\xc1"))
        with pytest.raises(MalformedFrame):
            decoder.feed(good)  # a stream that lost its place is not taken up again


def test_text_without_utf8_is_refused_by_the_sender() -> None:
    with pytest.raises(BadRequest, match="Unicode"):
        encode({"a": "\ud800"})
