"""Which copies of llama.cpp are taken for rows of cells. Addresses made by hand, in memory of the test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.engine.base import BatchItem
from llmaas.engine.llama import cell_rows
from llmaas.engine.llama.cell_rows import Copies, available, slabs_in_cells, untouched
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.state_blob import Section
from llmaas.engine.llama.state_layout import Blob, StateLayout
from llmaas.kv_arrays import F16, KvSlab
from tests.contract.support import feed, text_tokens

DTYPE = np.dtype([("to", np.uintp), ("at", np.uintp), ("size", np.uintp)])
N_LAYER, N_CELLS, K, V = 3, 40, 8, 4


def blob_of(n: int, n_layer: int = N_LAYER) -> Blob:
    layout = StateLayout(1, (Section(n_layer, 2 * K, 2 * V),), tuple(range(n_layer)))
    return layout.blank(untouched(layout.size(n)), n)


def copies_of(blob: Blob, runs: list[tuple[int, int]], k: F16, v: F16) -> Copies:
    """What llama.cpp would copy if it had found these runs of cells (first, behind the last)."""
    found = []
    for rows, cells in ((blob.parts[0].k, k), (blob.parts[0].v, v)):
        for layer in range(len(rows)):
            at = 0
            for first, last in runs:
                to, source = cells[layer, first:last], rows[layer, at : at + last - first]
                found.append((to.ctypes.data, source.ctypes.data, to.nbytes))
                at += last - first
    return np.array(found, DTYPE)


def cells() -> tuple[F16, F16]:
    """As llama.cpp has them: K of a layer, V of the layer, K of the next."""
    memory = np.zeros((N_LAYER, N_CELLS * (K + V)), np.float16)
    k, v = memory[:, : N_CELLS * K], memory[:, N_CELLS * K :]
    return k.reshape(N_LAYER, N_CELLS, K), v.reshape(N_LAYER, N_CELLS, V)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, N_CELLS), min_size=2, max_size=8, unique=True).map(sorted))
def test_each_run_of_cells_is_a_slab(cuts: list[int]) -> None:
    runs = list(zip(cuts[::2], cuts[1::2], strict=False))
    k, v = cells()
    n = sum(last - first for first, last in runs)
    blob = blob_of(n)
    slabs = slabs_in_cells(blob, copies_of(blob, runs, k, v))
    assert slabs is not None
    assert [slab.n_tokens for slab in slabs] == [last - first for first, last in runs]
    for number, slab in enumerate(slabs, 1):
        slab.k[:], slab.v[:] = number, -number
    wanted = np.zeros(N_CELLS)
    for number, (first, last) in enumerate(runs, 1):
        wanted[first:last] = number
    assert (k == wanted[None, :, None]).all() and (v == -wanted[None, :, None]).all()


@pytest.mark.parametrize("field", ["to", "at", "size"])
@pytest.mark.parametrize("number", range(2 * N_LAYER))
def test_whatever_is_not_as_expected_is_not_taken(number: int, field: str) -> None:
    k, v = cells()
    blob = blob_of(10)
    good = copies_of(blob, [(5, 15)], k, v)
    assert slabs_in_cells(blob, good) is not None
    bad = good.copy()
    bad[field][number] += 2
    assert slabs_in_cells(blob, bad) is None


def test_a_copy_too_few_or_too_many_is_not_taken() -> None:
    k, v = cells()
    blob = blob_of(10)
    good = copies_of(blob, [(5, 15)], k, v)
    for bad in (good[:0], good[:-1], np.concatenate([good, good[:1]]), np.concatenate([good, good])):
        assert slabs_in_cells(blob, bad) is None


def test_layers_that_overlap_are_not_taken() -> None:
    k, v = cells()
    blob = blob_of(10)
    bad = copies_of(blob, [(5, 15)], k, v)
    bad["to"][:N_LAYER] = bad["to"][0]
    assert slabs_in_cells(blob, bad) is None


def test_one_layer_is_enough() -> None:
    k, v = cells()
    blob = blob_of(10, n_layer=1)
    slabs = slabs_in_cells(blob, copies_of(blob, [(5, 15)], k[:1], v[:1]))
    assert slabs is not None and slabs[0].k.shape == (1, 10, K)


# -- with the model


needs_c = pytest.mark.skipif(not available(), reason="the C part was not built, or a GPU may have the cells")


@needs_c
def test_the_packaged_model_is_loaded_in_its_cells_wherever_they_are_free(gguf: Path) -> None:
    engine = LlamaEngine(gguf, n_cells=512, n_threads=1, n_seqs=4)
    feed(engine, 0, text_tokens(engine, 128))
    slab = engine.export(0, 0, 128)
    for seq, n in ((1, 30), (2, 5), (3, 40)):
        engine.step([BatchItem(seq, 0, text_tokens(engine, n))])
    engine.drop(2, 0)
    engine.drop(0, 100)  # three places are free: 28 cells, 5, and what lies behind
    found = engine.begin_load(2, 0, 128)
    assert found is not None and len(found) == 3
    at = 0
    for part in found:
        rows = slice(at, at + part.n_tokens)
        part.k[:], part.v[:] = slab.k[:, rows], slab.v[:, rows]
        at += part.n_tokens
    again = engine.export(2, 0, 128)
    assert np.array_equal(again.k, slab.k) and np.array_equal(again.v, slab.v)
    assert np.array_equal(engine.export(0, 0, 100).k, slab.k[:, :100])
    engine.close()


@needs_c
def test_with_more_places_than_it_looks_at_nothing_is_begun(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmaas.engine.llama import cells as cells_module

    engine = LlamaEngine(gguf, n_cells=256, n_threads=1, n_seqs=2)
    monkeypatch.setattr(cells_module, "MOST_COPIES", 59)  # the model's 30 layers have 60
    assert engine.begin_load(0, 0, 64) is None
    assert engine.length(0) == 0
    slab = engine.blank(256)
    slab.k[:] = slab.v[:] = 1.0
    engine.load(0, 0, slab)  # all cells are free still
    engine.close()


@needs_c
def test_where_a_row_does_not_come_back_rows_are_copied_as_before(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(blob: Blob, copies: Copies) -> list[KvSlab] | None:
        slabs = slabs_in_cells(blob, copies)
        return slabs and [dataclasses.replace(slab, k=slab.k.copy()) for slab in slabs]

    monkeypatch.setattr("llmaas.engine.llama.slabs.slabs_in_cells", elsewhere)
    engine = LlamaEngine(gguf, n_cells=256, n_threads=1, n_seqs=1)
    assert engine.begin_load(0, 0, 64) is None
    slab = engine.blank(64)
    slab.k[:] = slab.v[:] = 1.0
    engine.load(0, 0, slab)
    assert (engine.export(0, 0, 64).k == 1.0).all()
    engine.close()


def test_without_the_c_part_rows_are_copied(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_rows, "cell_rows_library", None)
    engine = LlamaEngine(gguf, n_cells=256, n_threads=1, n_seqs=1)
    assert engine.begin_load(0, 0, 64) is None
    engine.close()
