"""Models of every shape of attention: what is chunked and what is kept as a whole, and that both come back exactly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import collect_lines
from llmaas.errors import EngineFailed
from llmaas.kv_arrays import F32
from llmaas.kvchunks.codec.codec import Codec
from llmaas.records import CHUNK_TOKENS, LOSSLESS, ChunkKey, Precision
from tests.support.attention_models import write_deepseek, write_windowed
from tests.support.random_models import Shape, write_llama

KEY = ChunkKey(bytes(16))
N_TOKENS = 150
ONLY_WINDOW = "of a window of 64 nothing else is kept"
CHUNKED: dict[str, Callable[[Path], Path]] = {
    **{
        f"heads of {dim}": lambda path, dim=dim: write_llama(path, shape=Shape(head_dim=dim))  # type: ignore[misc]
        for dim in (80, 96, 112, 192, 256)
    },
    "V smaller than K": lambda path: write_deepseek(path, latent=False),
    "a window of 64": lambda path: write_windowed(path, window=64),
}
WHOLE: dict[str, Callable[[Path], Path]] = {
    "multi-head latent attention": lambda path: write_deepseek(path, latent=True),
    "a window of 32": lambda path: write_windowed(path, window=32),
    ONLY_WINDOW: lambda path: write_windowed(path, window=64),
}


@pytest.fixture(params=[*CHUNKED, *WHOLE])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LlamaEngine]:
    path = (CHUNKED | WHOLE)[request.param](tmp_path / "m.gguf")
    made = LlamaEngine(path, n_cells=512, n_seqs=2, n_threads=1, full_windows=request.param != ONLY_WINDOW)
    assert made.info.chunkable is (request.param in CHUNKED), made.info.note
    yield made
    made.close()


def fill(engine: LlamaEngine) -> None:
    feed(engine, [259 + i * i % 61 for i in range(N_TOKENS)])


def feed(engine: LlamaEngine, tokens: list[int]) -> None:
    """In pieces: where there are windows, a step is no longer than they are."""
    for at in range(0, len(tokens), 30):
        engine.step([BatchItem(0, engine.length(0), tokens[at : at + 30])])


def answer(engine: LlamaEngine, seq: int) -> list[F32]:
    found = []
    for i in range(4):
        engine.set_sampler(0, Sampling(temperature=0.0))
        engine.step([BatchItem(seq, engine.length(seq), [60 + i], 0)])
        found.append(engine.logits())
    return found


def test_a_context_comes_back_bit_by_bit(engine: LlamaEngine) -> None:
    fill(engine)
    kept = export(engine)
    right = answer(engine, 0)
    engine.drop(0, 0)
    kept(1)
    assert engine.length(1) == N_TOKENS
    assert all(np.array_equal(a, b) for a, b in zip(answer(engine, 1), right, strict=True))


def export(engine: LlamaEngine) -> Callable[[int], None]:
    """What brings sequence 0, as it is now, back into an empty one."""
    if engine.info.state is not None:
        state = engine.export_state(0)
        assert state.nbytes == engine.info.state.of(N_TOKENS)
        return lambda seq: engine.load_state(seq, N_TOKENS, state)
    codec = Codec(engine.info.geometry, engine.rope)
    starts = range(0, N_TOKENS, CHUNK_TOKENS)
    slabs = [engine.export(0, start, min(start + CHUNK_TOKENS, N_TOKENS)) for start in starts]
    coded = [codec.encode(slab, LOSSLESS, KEY) for slab in slabs]

    def load(seq: int) -> None:
        for start, payload in zip(starts, coded, strict=True):
            into = engine.blank(min(CHUNK_TOKENS, N_TOKENS - start))
            codec.decode(payload, KEY, into)
            engine.load(seq, start, into)

    return load


def test_chunks_of_every_size_of_heads_are_coded(engine: LlamaEngine) -> None:
    if not engine.info.chunkable:
        pytest.skip("it is kept as a whole")
    fill(engine)
    codec, slab = Codec(engine.info.geometry, engine.rope), engine.export(0, 0, CHUNK_TOKENS)
    payload = codec.encode(slab, Precision(4, 4), KEY)
    assert len(payload) == codec.encoded_size(CHUNK_TOKENS, Precision(4, 4))
    found = codec.decoded(payload, KEY)
    for a, b in ((found.k, slab.k), (found.v, slab.v)):
        error = np.linalg.norm(a.astype(np.float32) - b.astype(np.float32)) / np.linalg.norm(b.astype(np.float32))
        assert error < 0.15


def test_without_full_windows_cells_and_states_take_less_and_answers_are_the_same(tmp_path: Path) -> None:
    path, answers, sizes, cells = write_windowed(tmp_path / "m.gguf", window=64), [], [], []
    for full in (True, False):
        with collect_lines() as lines:
            engine = LlamaEngine(path, n_cells=2048, n_seqs=2, n_threads=1, n_ubatch=64, full_windows=full)
        cells.append(sum(float(n) for n in re.findall(r"KV buffer size *= *([0-9.]+) MiB", "\n".join(lines))))
        for _ in range(4):
            feed(engine, [259 + i * i % 61 for i in range(N_TOKENS)])
        answers.append([int(np.argmax(logits)) for logits in answer(engine, 0)])
        sizes.append(engine.decoder.cells.read_whole(0).size)
        if not full:
            with pytest.raises(EngineFailed, match="window"):
                engine.drop(0, 500)
            assert engine.length(0) == 4 * N_TOKENS + 4
            engine.drop(0, 0)
        engine.close()
    assert answers[0] == answers[1]
    assert sizes[1] <= sizes[0]
    assert 0 < cells[1] < 0.5 * cells[0]
