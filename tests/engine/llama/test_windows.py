"""Real models with sliding-window layers: their chunks, and their cells, which llama.cpp would give to other tokens.

Set LLMAAS_TEST_MODELS to a folder with GGUF files of such models (Gemma 3 270M is enough).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.cells import window_of
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import C, load_model
from llmaas.kv_arrays import KvSlab
from llmaas.records import CHUNK_TOKENS

Logits = npt.NDArray[np.float32]
PROSE = " ".join(f"On day {day} the keeper walked {day * 7 % 31} miles and saw the storm." for day in range(400))
SHORT, LONG = 300, 1500
"""Tokens of the contexts: less than the window, and so many that most have left it."""
NOISE = 0.05
"""Most KLD (nats) between two runs that differ in where cells are."""


def _windowed(path: Path) -> bool:
    model = load_model(path)
    window = window_of(model)
    C.llama_model_free(model)
    return SHORT < window < LONG // 2


@pytest.fixture(scope="module")
def shared() -> Iterator[LlamaEngine]:
    folder = os.environ.get("LLMAAS_TEST_MODELS")
    if not folder:
        pytest.skip("LLMAAS_TEST_MODELS names no folder of models")
    path = next(filter(_windowed, sorted(Path(folder).glob("*.gguf"), key=lambda path: path.stat().st_size)), None)
    if path is None:
        pytest.skip(f"{folder} has no model with a window of {SHORT} to {LONG // 2} tokens")
    engine = LlamaEngine(path, n_cells=2304, n_seqs=4, n_threads=1)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: LlamaEngine) -> LlamaEngine:
    for seq in range(shared.n_seqs):
        shared.drop(seq, 0)
    return shared


def feed(engine: LlamaEngine, seq: int, start: int, stop: int) -> None:
    tokens = engine.tokenize(PROSE, special=False, bos=True)
    for at in range(start, stop, 100):
        engine.step([BatchItem(seq, at, tokens[at : min(at + 100, stop)])])


def answer(engine: LlamaEngine, seq: int) -> tuple[list[int], list[Logits]]:
    """A greedy continuation, dropped again, and the logits on its way."""
    engine.set_sampler(seq, Sampling())
    length, tokens, logits = engine.length(seq), engine.tokenize(" Then", special=False, bos=False)[:1], []
    for _ in range(24):
        (drawn,) = engine.step([BatchItem(seq, engine.length(seq), tokens[-1:], sampler=seq)])
        assert drawn is not None
        tokens.append(drawn)
        logits.append(engine.logits())
    engine.drop(seq, length)
    return tokens, logits


def chunks(engine: LlamaEngine, seq: int) -> list[KvSlab]:
    n = engine.length(seq)
    return [engine.export(seq, at, min(at + CHUNK_TOKENS, n)) for at in range(0, n, CHUNK_TOKENS)]


def same(a: list[KvSlab], b: list[KvSlab]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(np.array_equal(x.k, y.k) and np.array_equal(x.v, y.v) for x, y in pairs)


def divergence(p: Logits, q: Logits) -> float:
    """KLD of the next-token distributions, in nats."""
    a, b = (x.astype(np.float64) - x.max() for x in (p, q))
    a, b = a - np.log(np.exp(a).sum()), b - np.log(np.exp(b).sum())
    return float((np.exp(a) * (a - b)).sum())


def test_a_model_with_windows_is_chunkable_and_its_layers_are_in_order(engine: LlamaEngine) -> None:
    info = engine.info
    assert info.chunkable, info.note
    feed(engine, 0, 0, 3)
    before = engine.export(0, 0, 2)
    for layer in (0, info.geometry.n_layer // 2, info.geometry.n_layer - 2):
        engine.drop(0, 0)
        altered = engine.blank(2)
        altered.k[:], altered.v[:] = before.k, before.v
        altered.v[layer] *= -1
        engine.load(0, 0, altered)
        feed(engine, 0, 2, 3)
        after = engine.export(0, 2, 3).k
        engine.drop(0, 0)
        engine.load(0, 0, before)
        feed(engine, 0, 2, 3)
        changed = (engine.export(0, 2, 3).k != after).any(axis=(1, 2))
        assert changed.tolist() == [other > layer for other in range(info.geometry.n_layer)]


def test_layers_look_back_as_far_as_their_windows_say(engine: LlamaEngine) -> None:
    windows = engine.windows
    assert len(windows) == engine.info.geometry.n_layer and len(set(windows)) == 2
    near, far = LONG - max(windows) + 1, 0
    feed(engine, 0, 0, LONG)
    feed(engine, 0, LONG, LONG + 1)
    plain, slabs = engine.export(0, LONG, LONG + 1).k, engine.export(0, 0, LONG)
    for layer, position, sees in [
        (windows.index(0), far, True),
        (windows.index(max(windows)), near - 1, False),
        (windows.index(max(windows)), near, True),
    ]:
        altered = engine.blank(LONG)
        altered.k[:], altered.v[:] = slabs.k, slabs.v
        altered.v[layer, position] += 100
        engine.drop(0, 0)
        engine.load(0, 0, altered)
        feed(engine, 0, LONG, LONG + 1)
        changed = engine.export(0, LONG, LONG + 1).k != plain
        assert changed[layer + 1 :].any() == sees


@pytest.mark.parametrize("n", [SHORT, LONG])
def test_a_context_comes_back_chunk_by_chunk_and_goes_on_bit_identical(engine: LlamaEngine, n: int) -> None:
    feed(engine, 0, 0, n)
    slabs = chunks(engine, 0)
    tokens, logits = answer(engine, 0)
    engine.drop(0, 0)
    for slab in slabs:
        engine.load(0, engine.length(0), slab)
    assert same(chunks(engine, 0), slabs)
    again, others = answer(engine, 0)
    assert again == tokens
    assert all(map(np.array_equal, logits, others))
    whole = engine.export(0, 0, n)
    assert np.array_equal(whole.k, np.concatenate([slab.k for slab in slabs], axis=1))


def test_cells_that_have_left_the_window_are_not_given_to_others(engine: LlamaEngine) -> None:
    feed(engine, 1, 0, 100)
    feed(engine, 0, 0, LONG)
    slabs, (_, logits) = chunks(engine, 0), answer(engine, 0)
    engine.drop(1, 0)  # llama.cpp looks for free cells from here on, and meets the context's first ones
    feed(engine, 2, 0, 600)
    assert same(chunks(engine, 0), slabs)
    engine.drop(0, LONG // 2)
    feed(engine, 0, LONG // 2, LONG)  # needs what lay behind the window a moment ago
    assert divergence(logits[0], answer(engine, 0)[1][0]) < NOISE


def test_a_shared_beginning_outlives_the_one_who_computed_it(engine: LlamaEngine) -> None:
    feed(engine, 0, 0, LONG)
    slabs = chunks(engine, 0)
    engine.copy(0, 1, 14 * CHUNK_TOKENS)
    engine.drop(0, 0)
    feed(engine, 2, 0, 900)
    assert same(chunks(engine, 1), slabs[:14])
    engine.drop(1, 0)
    engine.drop(2, 0)
    feed(engine, 3, 0, engine.n_cells)  # nothing holds a cell any more
    assert engine.length(3) == engine.n_cells
