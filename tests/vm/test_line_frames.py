"""Frames on the line between host and guest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.vm.line_frames import MOST_BYTES, LineBroken, LineDecoder, LineFrame, LineKind, encode_line_frame

FRAMES = st.lists(
    st.builds(LineFrame, st.sampled_from(LineKind), st.integers(0, 2**32 - 1), st.binary(max_size=100)), max_size=8
)


@given(FRAMES, st.lists(st.integers(1, 50), min_size=1))
def test_frames_are_what_they_were_however_the_stream_is_cut(frames: list[LineFrame], cuts: list[int]) -> None:
    data, decoder, found = b"".join(encode_line_frame(*frame) for frame in frames), LineDecoder(), []
    while data:
        cut = cuts.pop(0) if len(cuts) > 1 else cuts[0]
        found += decoder.feed(data[:cut])
        data = data[cut:]
    assert found == frames


def test_the_longest_frame_passes_and_a_longer_one_is_not_made() -> None:
    longest = encode_line_frame(LineKind.DATA, 1, bytes(MOST_BYTES))
    assert LineDecoder().feed(longest) == [LineFrame(LineKind.DATA, 1, bytes(MOST_BYTES))]
    with pytest.raises(ValueError, match="at most"):
        encode_line_frame(LineKind.DATA, 1, bytes(MOST_BYTES + 1))


@pytest.mark.parametrize("head", ["0300000001ffff", "00000000010001", "06000000010001", "ff000000000000"])
def test_what_is_no_frame_is_refused_before_it_has_come_and_nothing_after_it_is_read(head: str) -> None:
    decoder = LineDecoder()
    with pytest.raises(LineBroken):
        decoder.feed(bytes.fromhex(head))
    with pytest.raises(LineBroken):
        decoder.feed(encode_line_frame(LineKind.NOTE, 0))


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_a_broken_line(data: bytes) -> None:
    try:
        frames = LineDecoder().feed(data)
    except LineBroken:
        return
    made = b"".join(encode_line_frame(*frame) for frame in frames)
    assert data.startswith(made) and len(data) - len(made) < 7 + MOST_BYTES
