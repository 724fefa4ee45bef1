"""The checksums of rows: what they notice, and what they put right."""

from __future__ import annotations

import random

import pytest

from llmaas.kvchunks.store.chain import Chain, RawSpan, start
from llmaas.kvchunks.store.sums import row_checksum, without_flip


def signed(n: int) -> list[RawSpan]:
    spans, before = list[RawSpan](), start("a")
    for i in range(n):
        span = RawSpan(i + 1, bytes([i]) * 40, b"user", f"message {i}".encode(), 0, None)
        before = span.link(before)
        spans.append(span._replace(chain=before))
    return spans


def followed(spans: list[RawSpan], expected: object) -> tuple[list[RawSpan], Chain]:
    chain = Chain(b"a")
    right = [span for raw in spans for span in chain.add(raw)]
    assert isinstance(expected, bytes)
    return [*right, *chain.end(expected)], chain


def test_a_checksum_tells_values_types_and_their_borders_apart() -> None:
    rows = [(b"ab", b"c"), (b"a", b"bc"), (b"abc", None), (None, b"abc"), (b"abc", b""), (b"abc",), (1, 2), (1.0, 2)]
    assert len({row_checksum(row) for row in rows}) == len(rows)
    assert row_checksum(("é", None)) == row_checksum(("é".encode(), None))


@pytest.mark.parametrize("row", [(b"tokens", None, b"text", 1), (2, b"id", 3.25, b"", None, b"z" * 900)])
def test_every_flipped_bit_of_text_and_reals_is_put_right(row: tuple[bytes | int | float | None, ...]) -> None:
    expected, rng = row_checksum(row), random.Random(1)
    for at, value in enumerate(row):
        if not isinstance(value, bytes) or not value:
            continue
        damaged = bytearray(value)
        damaged[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        assert without_flip((*row[:at], bytes(damaged), *row[at + 1 :]), expected) == row
    assert without_flip((*row[:-1], b"something else"), expected) is None
    for impossible in (None, b"", b"1234567", 5, "12345678"):
        assert without_flip(row, impossible) is None


def test_a_row_too_long_to_search_is_not_searched() -> None:
    assert without_flip((bytes(40 << 10),), bytes(8)) is None


def test_spans_that_are_as_they_were_written_are_whole() -> None:
    spans = signed(5)
    right, chain = followed(spans, spans[-1].chain)
    assert (right, chain.value, chain.n_tokens) == (spans, spans[-1].chain, 50)
    assert (chain.mended, chain.foreign) == (0, 0)
    assert followed([], start("a"))[1].value == start("a")


@pytest.mark.parametrize("missing", range(5))
def test_a_span_that_is_missing_ends_what_is_right(missing: int) -> None:
    spans = signed(5)
    right, chain = followed(spans[:missing] + spans[missing + 1 :], spans[-1].chain)
    assert right == spans[:missing]
    assert chain.value != spans[-1].chain


def test_spans_in_another_order_or_twice_are_not_taken() -> None:
    a, b, c = signed(3)
    assert followed([a, c, b], c.chain)[0] == [a, b]
    assert followed([a, a, b, b, c], c.chain)[0] == [a, b, c]


@pytest.mark.parametrize("place", range(4))
def test_a_span_of_another_context_is_left_out(place: int) -> None:
    spans, foreign = signed(3), RawSpan(9, b"1234", None, None, 0, bytes(8))
    right, chain = followed([*spans[:place], foreign, *spans[place:]], spans[-1].chain)
    assert (right, chain.foreign, chain.mended) == (spans, 1, 0)


@pytest.mark.parametrize("damaged", range(4))
@pytest.mark.parametrize("chain_of", [None, b"", b"another!", 7])
def test_a_span_whose_checksum_is_damaged_is_confirmed_by_what_follows(damaged: int, chain_of: bytes | None) -> None:
    spans = signed(4)
    altered = [*spans[:damaged], spans[damaged]._replace(chain=chain_of), *spans[damaged + 1 :]]
    right, chain = followed(altered, spans[-1].chain)
    assert (right, chain.mended, chain.foreign) == (spans, 1, 0)


@pytest.mark.parametrize("damaged", range(3))
def test_a_span_with_a_flipped_bit_is_put_right_and_one_with_more_is_not(damaged: int) -> None:
    spans = signed(3)
    one = spans[damaged]._replace(tokens=bytes([damaged ^ 64]) + bytes([damaged]) * 39)
    more = spans[damaged]._replace(text=b"something else")
    assert followed([*spans[:damaged], one, *spans[damaged + 1 :]], spans[-1].chain)[0] == spans
    assert followed([*spans[:damaged], more, *spans[damaged + 1 :]], spans[-1].chain)[0] == spans[:damaged]


def test_the_first_span_belongs_to_one_context_only() -> None:
    (first,) = signed(1)
    assert Chain("a").add(first) == [first]
    assert Chain("b").add(first) == []
