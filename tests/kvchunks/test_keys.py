"""Chunk keys: equal exactly when everything up to the chunk's end is equal."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.kvchunks.keys import chunk_keys, namespace
from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey

ROOT = namespace(AppId("1000/notes"), "fingerprint")
TOKENS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40)
CHUNKS = st.integers(1, 9)


@given(TOKENS, CHUNKS)
def test_there_is_one_key_of_16_bytes_per_chunk(tokens: list[int], chunk: int) -> None:
    keys = chunk_keys(ROOT, tokens, chunk=chunk)
    assert len(keys) == -(-len(tokens) // chunk)
    assert all(len(key) == 16 for key in keys)
    assert len(set(keys)) == len(keys)


@given(TOKENS, TOKENS, CHUNKS)
def test_keys_are_shared_exactly_as_far_as_the_tokens_are(one: list[int], other: list[int], chunk: int) -> None:
    for a, b in ((one, other), (one, one + other)):
        pairs = zip(chunk_keys(ROOT, a, chunk=chunk), chunk_keys(ROOT, b, chunk=chunk), strict=False)
        for i, (key_a, key_b) in enumerate(pairs):
            stop = (i + 1) * chunk
            assert (key_a == key_b) == (a[:stop] == b[:stop])


@given(TOKENS, CHUNKS, st.data())
def test_known_keys_give_the_same_chain(tokens: list[int], chunk: int, data: st.DataObject) -> None:
    keys = chunk_keys(ROOT, tokens, chunk=chunk)
    n = data.draw(st.integers(0, len(tokens) // chunk))
    assert chunk_keys(ROOT, tokens, known=keys[:n], chunk=chunk) == keys


def test_known_keys_are_taken_on_trust() -> None:
    made_up = ChunkKey(b"sixteen bytes...")
    keys = chunk_keys(ROOT, range(128), known=[made_up])
    assert keys[0] == made_up
    assert keys[1] == chunk_keys(made_up, range(64, 128))[0]


@given(TOKENS)
def test_lists_arrays_and_views_of_the_same_tokens_have_the_same_keys(tokens: list[int]) -> None:
    ids = array("i", tokens)
    expected = chunk_keys(ROOT, tokens, chunk=4)
    assert chunk_keys(ROOT, tuple(tokens), chunk=4) == expected
    assert chunk_keys(ROOT, ids, chunk=4) == expected
    assert chunk_keys(ROOT, memoryview(ids), chunk=4) == expected
    assert chunk_keys(ROOT, array("q", tokens), chunk=4) == expected
    assert chunk_keys(ROOT, memoryview(array("i", [t for t in tokens for _ in "ab"]))[::2], chunk=4) == expected
    assert ids == array("i", tokens)


def test_a_partial_chunk_has_another_key_than_the_full_one_that_begins_like_it() -> None:
    full = chunk_keys(ROOT, range(CHUNK_TOKENS))
    partial = chunk_keys(ROOT, range(CHUNK_TOKENS - 1))
    assert len(full) == len(partial) == 1
    assert full != partial


def test_a_change_in_an_early_token_changes_every_later_key() -> None:
    tokens = list(range(4 * CHUNK_TOKENS))
    before = chunk_keys(ROOT, tokens)
    tokens[3] = 7
    assert not set(before) & set(chunk_keys(ROOT, tokens))


NAMES = st.text(max_size=6)


@given(st.tuples(NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES))
def test_roots_are_equal_only_when_app_model_and_adapter_are(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    assert (namespace(AppId(a[0]), a[1], a[2]) == namespace(AppId(b[0]), b[1], b[2])) == (a == b)


def test_moving_a_letter_between_fields_changes_the_root() -> None:
    roots = {
        namespace(AppId(a), b, c) for a, b, c in (("ab", "c", ""), ("a", "bc", ""), ("a", "b", "c"), ("", "abc", ""))
    }
    assert len(roots) == 4


def test_apps_never_share_keys_even_for_the_same_tokens() -> None:
    mine = chunk_keys(ROOT, range(200))
    theirs = chunk_keys(namespace(AppId("1001/notes"), "fingerprint"), range(200))
    assert not set(mine) & set(theirs)


def test_the_key_scheme_is_pinned_because_stores_on_disk_rely_on_it() -> None:
    assert ROOT.hex() == "930e5095649b1985361a1663793247c5"
    assert chunk_keys(ROOT, range(65))[-1].hex() == "31790373a695b0bc844f1d56aceb1a54"


def test_more_known_chunks_than_tokens_are_refused() -> None:
    keys = chunk_keys(ROOT, range(128))
    with pytest.raises(ValueError, match="2 known chunks"):
        chunk_keys(ROOT, range(127), known=keys)


def test_tokens_that_are_no_int32_and_chunks_of_nothing_are_refused() -> None:
    with pytest.raises(OverflowError):
        chunk_keys(ROOT, [2**31])
    with pytest.raises(ValueError, match="at least one token"):
        chunk_keys(ROOT, [1], chunk=0)
