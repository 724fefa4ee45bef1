from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.service.stream import TextStream


def test_a_character_split_over_tokens_comes_out_whole() -> None:
    stream = TextStream()
    data = "né🙂".encode()
    assert [stream.feed(bytes([b])) for b in data] == ["n", "", "é", "", "", "", "🙂"]
    assert stream.end() == ""


def test_a_stop_string_across_tokens_never_comes_out() -> None:
    stream = TextStream(["</s>", "STOP"])
    assert [stream.feed(x) for x in (b"a<", b"/b<", b"/s", b">c")] == ["a", "</b", "", ""]
    assert stream.stopped and stream.text == "a</b" and stream.end() == "" and stream.feed(b"x") == ""


def test_what_was_held_back_comes_out_at_the_end() -> None:
    stream = TextStream(["END"])
    assert stream.feed(b"the EN") == "the "
    assert stream.end() == "EN"
    assert stream.text == "the EN"


def test_broken_bytes_become_replacement_characters() -> None:
    stream = TextStream()
    assert stream.feed(b"a\xff") + stream.feed(b"\xf0\x9f") + stream.end() == "a\ufffd\ufffd"


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.data())
def test_streaming_in_any_pieces_gives_the_text_up_to_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    raw = text.encode("utf-8", "replace")
    text = raw.decode()
    stream = TextStream(stops)
    out, at = "", 0
    while at < len(raw) and not stream.stopped:
        n = data.draw(st.integers(1, 5))
        out += stream.feed(raw[at : at + n])
        at += n
    out += stream.end()
    assert out == stream.text
    assert not any(s in out for s in stops)
    assert text.startswith(out)
    if not stream.stopped:
        assert out == text
    else:
        assert any(text[len(out) :].startswith(s) for s in stops)


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_what_was_told_is_as_many_whole_tokens_as_can_be_and_a_rest(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    raw = text.encode("utf-8", "replace")
    stream, tokens = TextStream(stops), list[bytes]()
    while raw and not stream.stopped:
        n = data.draw(st.integers(1, 5))
        tokens.append(raw[:n])
        raw = raw[n:]
        stream.feed(tokens[-1])
    stream.end()
    n, rest = stream.told()
    assert b"".join(tokens[:n]).decode() + rest == stream.text
    if not stream.stopped:
        assert (n, rest) == (len(tokens), "")
    else:
        assert stream.stopped_by in stops and n < len(tokens)
        assert n == max(m for m in range(len(tokens)) if _begins(stream.text, b"".join(tokens[:m])))


def _begins(text: str, part: bytes) -> bool:
    """Whether the text begins with these bytes, and no character of it is cut."""
    try:
        return text.startswith(part.decode())
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize(
    ("tokens", "stop", "told"),
    [
        ((b" six", b",", b" seven", b",", b" eight"), "eight", (4, " ")),
        ((b" six", b",", b" eight"), " eight", (2, "")),
        ((b"a", b"\nObserv", b"ation:"), "\nObservation:", (1, "")),
        ((b"a\xc3", b"\xa9X"), "\u00e9", (0, "a")),
        ((b"a\xc3", b"\xa9X"), "X", (0, "a\u00e9")),
        ((b"stop",), "stop", (0, "")),
        ((b"a", b"", b"stop"), "stop", (1, "")),
    ],
)
def test_the_tokens_that_were_told(tokens: tuple[bytes, ...], stop: str, told: tuple[int, str]) -> None:
    stream = TextStream([stop])
    for token in tokens:
        stream.feed(token)
    assert stream.stopped_by == stop and stream.told() == told
