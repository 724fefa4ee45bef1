"""What every engine promises of KV: it goes out and in bit by bit, and what may be learnt from it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy as np
import pytest

from llmaas.engine.base import CellsFull, Engine
from llmaas.kv_arrays import KvSlab
from llmaas.records import CHUNK_TOKENS
from tests.contract.support import Logits, N, bounds, feed, load_all, probe, same_rows, text_tokens

# -- export and load


def test_a_whole_context_comes_back_bit_identical(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, slabs)
    whole = engine.export(0, 0, N)
    engine.drop(0, 0)
    engine.load(0, 0, whole)
    assert engine.length(0) == N
    assert np.array_equal(probe(engine), truth)


def test_a_context_comes_back_chunk_by_chunk_bit_identical(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, slabs)
    assert np.array_equal(probe(engine), truth)


def test_rows_written_into_blank_slabs_load_bit_identical(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    for slab in slabs:
        blank = engine.blank(slab.n_tokens)
        blank.k[:], blank.v[:] = slab.k, slab.v
        engine.load(0, engine.length(0), blank)
    assert np.array_equal(probe(engine), truth)


def test_what_is_exported_after_a_load_is_what_was_loaded(engine: Engine, slabs: list[KvSlab]) -> None:
    load_all(engine, 0, slabs)
    for slab, (start, stop) in zip(slabs, bounds(N), strict=True):
        assert same_rows(engine.export(0, start, stop), slab)
    part = engine.export(0, 10, 20)
    assert np.array_equal(part.k, slabs[0].k[:, 10:20])
    assert np.array_equal(part.v, slabs[0].v[:, 10:20])


@pytest.mark.parametrize("hole", [0, 1, 3, 4])
def test_a_hole_is_recomputed_bit_identical(engine: Engine, slabs: list[KvSlab], truth: Logits, hole: int) -> None:
    tokens = text_tokens(engine)
    load_all(engine, 0, slabs[:hole])
    start, stop = bounds(N)[hole]
    feed(engine, 0, tokens[start:stop])
    assert same_rows(engine.export(0, start, stop), slabs[hole])
    load_all(engine, 0, slabs[hole + 1 :])
    assert np.array_equal(probe(engine), truth)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chunks_may_arrive_in_any_order_if_they_go_in_ascending(
    engine: Engine, slabs: list[KvSlab], truth: Logits, seed: int
) -> None:
    arrived: dict[int, KvSlab] = {}
    order = list(range(len(slabs)))
    random.Random(seed).shuffle(order)
    for index in order:
        blank = engine.blank(slabs[index].n_tokens)
        blank.k[:], blank.v[:] = slabs[index].k, slabs[index].v
        arrived[index] = blank
        while (ready := arrived.pop(next_chunk(engine.length(0)), None)) is not None:
            engine.load(0, engine.length(0), ready)
    assert np.array_equal(probe(engine), truth)


def next_chunk(length: int) -> int:
    return -(-length // CHUNK_TOKENS)


def test_loading_out_of_order_is_refused(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    for start in (CHUNK_TOKENS, 1):
        with pytest.raises(ValueError, match="cannot load"):
            engine.load(0, start, slabs[1])
    engine.load(0, 0, slabs[0])
    with pytest.raises(ValueError, match="cannot load"):
        engine.load(0, 0, slabs[0])
    load_all(engine, 0, slabs[1:])
    assert np.array_equal(probe(engine), truth)


def test_a_misplaced_chunk_changes_the_answer(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, [slabs[1], slabs[0], *slabs[2:]])
    assert not np.array_equal(probe(engine), truth)


def test_a_damaged_row_changes_the_answer(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    blank = engine.blank(CHUNK_TOKENS)
    blank.k[:], blank.v[:] = slabs[2].k, slabs[2].v
    blank.v[-1, 7] *= -1
    load_all(engine, 0, [*slabs[:2], blank, *slabs[3:]])
    assert not np.array_equal(probe(engine), truth)


def test_a_slab_outlives_the_cells_and_other_slabs(engine: Engine, slabs: list[KvSlab]) -> None:
    load_all(engine, 0, slabs)
    kept = engine.export(0, 0, CHUNK_TOKENS).k
    wanted = kept.copy()
    engine.drop(0, 0)
    for _ in range(3):
        engine.blank(CHUNK_TOKENS).k[:] = 0
    assert np.array_equal(kept, wanted)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (2, 1), (-1, 2), (0, 6), (5, 6)])
def test_only_positions_that_exist_are_exported(engine: Engine, start: int, stop: int) -> None:
    feed(engine, 0, text_tokens(engine, 5))
    with pytest.raises(ValueError, match="no positions"):
        engine.export(0, start, stop)


def test_only_an_engines_own_slabs_are_loaded(engine: Engine) -> None:
    k = np.zeros((1, 2, 8), np.float16)
    with pytest.raises(ValueError, match="slab"):
        engine.load(0, 0, KvSlab(k, k))
    with pytest.raises(ValueError, match="slab"):
        engine.blank(0)
    assert engine.length(0) == 0


# -- rows that are written into cells


def write_rows(rows: list[KvSlab], slabs: list[KvSlab]) -> None:
    """Write the rows of ``slabs``, in order, to those in cells, on another thread."""
    wanted = KvSlab(*(np.concatenate([getattr(slab, name) for slab in slabs], axis=1) for name in ("k", "v")))

    def write() -> None:
        at = 0
        for part in rows:
            tokens = slice(at, at + part.n_tokens)
            part.k[:], part.v[:] = wanted.k[:, tokens], wanted.v[:, tokens]
            at += part.n_tokens

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()


def begin_load(engine: Engine, seq: int, start: int, n: int) -> list[KvSlab]:
    rows = engine.begin_load(seq, start, n)
    assert rows is not None and sum(part.n_tokens for part in rows) == n
    return rows


def test_rows_written_into_cells_are_a_load(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    write_rows(begin_load(engine, 0, 0, N), slabs)
    assert engine.length(0) == N
    assert np.array_equal(probe(engine), truth)
    assert all(same_rows(engine.export(0, *at), slab) for at, slab in zip(bounds(N), slabs, strict=True))


def test_a_load_into_cells_goes_on_behind_another(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, slabs[:2])
    write_rows(begin_load(engine, 0, 2 * CHUNK_TOKENS, N - 2 * CHUNK_TOKENS), slabs[2:])
    assert np.array_equal(probe(engine), truth)


def test_what_was_not_written_is_taken_back(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    rows = begin_load(engine, 0, 0, N)
    written = KvSlab(*(np.concatenate([getattr(s, name) for s in slabs[:3]], axis=1) for name in ("k", "v")))
    n = written.n_tokens
    kept, at = [], 0
    for part in rows:
        size = min(part.n_tokens, n - at)
        kept.append(KvSlab(part.k[:, :size], part.v[:, :size]))
        at += size
    write_rows(kept, [written])
    engine.drop(0, n)
    assert engine.length(0) == n
    load_all(engine, 0, slabs[3:])
    assert np.array_equal(probe(engine), truth)


def test_other_sequences_compute_while_rows_are_written(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, slabs)
    rows = begin_load(engine, 1, 0, N)
    write_rows(rows, [KvSlab(*(np.full_like(x, 0.5) for x in (slab.k, slab.v))) for slab in slabs])
    before = probe(engine)
    write_rows(rows, slabs)
    assert np.array_equal(probe(engine), before), "the mask leaves the others' cells out, whatever numbers they hold"
    assert all(same_rows(engine.export(1, *at), slab) for at, slab in zip(bounds(N), slabs, strict=True))


def test_rows_lie_between_what_is_in_cells_already(engine: Engine, slabs: list[KvSlab]) -> None:
    load_all(engine, 0, slabs)
    load_all(engine, 1, slabs[:1])
    load_all(engine, 2, slabs)
    engine.drop(0, 0)
    engine.drop(2, 0)
    write_rows(begin_load(engine, 3, 0, N), slabs)
    rest = begin_load(engine, 0, 0, N)
    write_rows(rest, slabs)
    for seq in (0, 3):
        assert all(same_rows(engine.export(seq, *at), slab) for at, slab in zip(bounds(N), slabs, strict=True))
    assert same_rows(engine.export(1, 0, CHUNK_TOKENS), slabs[0])


def test_a_load_into_cells_needs_its_place_and_room(engine: Engine, slabs: list[KvSlab]) -> None:
    load_all(engine, 0, slabs[:1])
    with pytest.raises(ValueError, match="cannot load"):
        engine.begin_load(0, 0, CHUNK_TOKENS)
    with pytest.raises(ValueError, match="slab"):
        engine.begin_load(0, CHUNK_TOKENS, 0)
    for n in (engine.n_cells - CHUNK_TOKENS + 1, engine.n_cells + 1):
        with pytest.raises(CellsFull):
            engine.begin_load(0, CHUNK_TOKENS, n)
    assert engine.length(0) == CHUNK_TOKENS
    begin_load(engine, 0, CHUNK_TOKENS, engine.n_cells - CHUNK_TOKENS)
    engine.drop(0, 0)


# -- what the model looks for in the KV (an engine may know nothing of it)


def test_how_keys_are_rotated_fits_the_geometry_and_is_the_same_at_every_start(
    engine: Engine, make_engine: Callable[[], Engine]
) -> None:
    other = make_engine()
    mine, its = engine.rope, other.rope
    other.close()
    assert (mine is None) == (its is None)
    if mine is not None and its is not None:
        n_layer, n_pairs = mine.angles.shape
        assert n_layer == engine.info.geometry.n_layer and 0 < 2 * n_pairs <= engine.info.geometry.head_dim_k
        assert mine.angles.dtype == np.float32 and np.abs(mine.angles).max() <= 1.0
        assert mine.halves == its.halves and np.array_equal(mine.angles, its.angles)


def test_queries_are_of_positions_that_were_stepped_and_are_taken_once(engine: Engine, slabs: list[KvSlab]) -> None:
    engine.load(0, 0, slabs[0])
    feed(engine, 0, text_tokens(engine, 150, skip=CHUNK_TOKENS))
    engine.drop(0, 2 * CHUNK_TOKENS)
    queries = engine.take_queries(0)
    assert engine.take_queries(0) is None and engine.take_queries(1) is None
    if queries is not None:
        assert queries.positions.dtype == np.int32 and queries.values.dtype == np.float16
        positions = queries.positions.tolist()
        assert positions == sorted(set(positions)) and positions[0] >= CHUNK_TOKENS
        assert positions[-1] < 2 * CHUNK_TOKENS, "the rest was dropped"
        g = engine.info.geometry
        n, n_layer, n_head, head_dim = queries.values.shape
        assert (n, n_layer, head_dim) == (len(positions), g.n_layer, g.head_dim_k)
        assert n_head % (g.k_dim // g.head_dim_k) == 0


def test_weights_of_keys_are_positive_and_as_wide_as_a_key(engine: Engine) -> None:
    feed(engine, 0, text_tokens(engine, 100))
    weights = engine.key_weights()
    if weights is not None:
        g = engine.info.geometry
        assert weights.shape == (g.n_layer, g.k_dim) and weights.dtype == np.float32
        assert (weights > 0).all() and np.isfinite(weights).all()
