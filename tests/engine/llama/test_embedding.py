"""Embeddings of models that real files are seldom: other pooling, recurrent layers, NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmaas.engine.llama.embedder import embedding_memory
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.errors import EngineFailed, NoNumbers
from llmaas.kv_arrays import F32
from tests.support.random_models import WIDTH, write_hybrid, write_llama

BAD = 270
TEXT = list(range(3, 63))
MEAN, FIRST, LAST = 1, 2, 3


def opened(path: Path, embedding_tokens: int = 256) -> LlamaEngine:
    return LlamaEngine(path, n_cells=256, n_seqs=2, n_threads=1, embedding_tokens=embedding_tokens)


def embedded(engine: LlamaEngine, tokens: list[int], slice_: int) -> F32:
    for pos in range(0, len(tokens), slice_):
        vector = engine.embed(pos, tokens[pos : pos + slice_])
    return vector


@pytest.mark.parametrize("pooling", [None, MEAN, FIRST, LAST])
def test_a_text_is_pooled_as_the_models_file_says(tmp_path: Path, pooling: int | None) -> None:
    engine = opened(write_llama(tmp_path / "m.gguf", pooling=pooling))
    try:
        whole = embedded(engine, TEXT, 60)
        assert whole @ embedded(engine, TEXT, 7) == pytest.approx(1, abs=1e-3)
        same_end = embedded(engine, [*TEXT[:50], 99, *TEXT[51:]], 60)
        same_begin = embedded(engine, TEXT[:30], 60)
        assert (whole @ same_begin > 0.999) == (pooling == FIRST)
        assert (whole @ same_end > 0.999) == (pooling == FIRST)
        alone = embedded(engine, TEXT[:1], 60)
        assert (whole @ alone > 0.999) == (pooling == FIRST)
    finally:
        engine.close()


def test_a_model_with_recurrent_layers_embeds(tmp_path: Path) -> None:
    engine = opened(write_hybrid(tmp_path / "m.gguf"))
    try:
        whole = embedded(engine, TEXT, 60)
        assert whole.shape == (WIDTH,)
        assert whole @ embedded(engine, TEXT, 7) == pytest.approx(1, abs=1e-3)
        embedded(engine, TEXT[::-1], 60)
        assert np.allclose(whole, embedded(engine, TEXT, 60), atol=1e-5), "nothing of the text before is left"
    finally:
        engine.close()


def test_what_is_no_numbers_fails_and_harms_no_other_text(tmp_path: Path) -> None:
    def poison(embeddings: F32) -> None:
        embeddings[BAD] = np.nan

    engine = opened(write_llama(tmp_path / "m.gguf", replaced={"token_embd.weight": poison}))
    try:
        right = embedded(engine, TEXT, 60)
        with pytest.raises(NoNumbers):
            embedded(engine, [*TEXT[:40], BAD, *TEXT[40:]], 20)
        with pytest.raises(ValueError, match="next position"):
            engine.embed(41, [5])
        assert np.array_equal(embedded(engine, TEXT, 60), right)
    finally:
        engine.close()


def test_without_room_for_a_text_there_are_none(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf")
    engine = opened(path, embedding_tokens=0)
    try:
        assert engine.embedding is None and embedding_memory(path, 0) == 0
        with pytest.raises(EngineFailed, match="no embeddings"):
            engine.embed(0, [5])
    finally:
        engine.close()


def test_the_memory_grows_with_the_longest_text(gguf: Path) -> None:
    short, long_ = embedding_memory(gguf, 256), embedding_memory(gguf, 1024)
    cell = 30 * 2 * 192 * 2
    assert long_ - short == pytest.approx(768 * cell, rel=0.1)
    assert 1024 * cell < long_ < 64 << 20
