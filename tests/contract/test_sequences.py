"""What every engine promises of sequences: drop, copy, and neighbours that do not disturb."""

from __future__ import annotations

import numpy as np
import pytest

from llmaas.engine.base import Engine
from llmaas.kv_arrays import KvSlab
from llmaas.records import CHUNK_TOKENS
from tests.contract.support import Logits, N, assert_close, bounds, feed, load_all, probe, same_rows, text_tokens

# -- drop and copy


def test_what_was_dropped_leaves_no_trace(engine: Engine, truth: Logits) -> None:
    tokens = text_tokens(engine)
    feed(engine, 0, tokens[: 2 * CHUNK_TOKENS])
    feed(engine, 0, text_tokens(engine, 50, skip=400))
    engine.drop(0, 2 * CHUNK_TOKENS)
    assert engine.length(0) == 2 * CHUNK_TOKENS
    feed(engine, 0, tokens[2 * CHUNK_TOKENS :])
    assert np.array_equal(probe(engine), truth)


def test_dropping_beyond_the_end_is_nothing(engine: Engine) -> None:
    feed(engine, 0, text_tokens(engine, 5))
    engine.drop(0, 5)
    engine.drop(0, 99)
    assert engine.length(0) == 5
    with pytest.raises(ValueError, match="cannot drop"):
        engine.drop(0, -1)


def test_a_copy_goes_its_own_way_and_takes_no_cells(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, slabs)
    for dst in (1, 2, 3):  # four times N would not fit
        engine.copy(0, dst, N)
    feed(engine, 1, text_tokens(engine, 20, skip=300))
    assert [engine.length(seq) for seq in range(4)] == [N, N + 20, N, N]
    engine.drop(0, 0)
    engine.drop(1, 0)
    assert np.array_equal(probe(engine, 2), truth)


def test_a_copy_of_a_prefix_continues_like_the_prefix(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, slabs[:2])
    wanted = probe(engine)
    load_all(engine, 0, slabs[2:])
    engine.copy(0, 1, 2 * CHUNK_TOKENS)
    assert engine.length(1) == 2 * CHUNK_TOKENS
    assert_close(engine, probe(engine, 1), wanted, other=truth)


def test_a_copy_needs_an_empty_target_and_a_long_enough_source(engine: Engine) -> None:
    feed(engine, 0, text_tokens(engine, 5))
    feed(engine, 1, text_tokens(engine, 2))
    with pytest.raises(ValueError, match="not empty"):
        engine.copy(0, 1, 2)
    with pytest.raises(ValueError, match="positions"):
        engine.copy(0, 2, 6)
    engine.copy(0, 2, 0)
    assert engine.length(2) == 0


# -- neighbours


def test_a_later_neighbour_changes_no_bit(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, slabs)
    feed(engine, 1, text_tokens(engine, 100, skip=300))
    assert np.array_equal(probe(engine), truth)
    engine.drop(1, 0)
    assert np.array_equal(probe(engine), truth)


@pytest.mark.parametrize("before", [0, 2, 5])
def test_neighbours_in_other_cells_do_not_disturb(
    engine: Engine, slabs: list[KvSlab], truth: Logits, other: Logits, before: int
) -> None:
    load_all(engine, 0, slabs[:before])
    feed(engine, 1, text_tokens(engine, 200, skip=200))
    load_all(engine, 0, slabs[before:])
    feed(engine, 2, text_tokens(engine, 200, skip=100))
    assert_close(engine, probe(engine), truth, other)
    engine.drop(1, 0)
    assert engine.length(0) == N
    assert_close(engine, probe(engine), truth, other)
    exported = [engine.export(0, start, stop) for start, stop in bounds(N)]
    assert all(map(same_rows, exported, slabs))


def test_a_context_in_scattered_cells_is_exported_in_order(
    engine: Engine, slabs: list[KvSlab], truth: Logits, other: Logits
) -> None:
    feed(engine, 1, text_tokens(engine, 256))
    load_all(engine, 0, slabs[:3])
    engine.drop(1, 0)  # frees the cells before, which the next chunks take
    load_all(engine, 0, slabs[3:])
    assert_close(engine, probe(engine), truth, other)
    whole = engine.export(0, 0, N)
    assert same_rows(whole, concatenated(slabs))
    engine.drop(0, 0)
    engine.load(0, 0, whole)
    assert np.array_equal(probe(engine), truth)


def concatenated(slabs: list[KvSlab]) -> KvSlab:
    return KvSlab(np.concatenate([s.k for s in slabs], axis=1), np.concatenate([s.v for s in slabs], axis=1))
