"""What every engine promises of models whose sequences cannot be cut: their state goes out and in as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, CellsFull, Engine
from llmaas.engine.fake import FakeEngine
from llmaas.errors import EngineFailed
from llmaas.kv_arrays import F32
from tests.support.recurrent_models import RECURRENT

N_CELLS, N_SEQS = 512, 3
TOKENS = [259 + i * i % 61 for i in range(150)]
"""Words of the random models' vocabulary."""


def _llama(write: Callable[[Path], Path], path: Path) -> Engine:
    from llmaas.engine.llama.engine import LlamaEngine

    return LlamaEngine(write(path), n_cells=N_CELLS, n_seqs=N_SEQS, n_threads=1)


@pytest.fixture(scope="module", params=["fake", *RECURRENT])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "fake":
        engine: Engine = FakeEngine(N_CELLS, N_SEQS, recurrent=True)
    else:
        engine = _llama(RECURRENT[request.param], tmp_path_factory.mktemp("models") / "m.gguf")
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: Engine) -> Engine:
    for seq in range(N_SEQS):
        shared.drop(seq, 0)
    return shared


def feed(engine: Engine, seq: int, n: int, start: int = 0) -> None:
    fake = engine.info.name == "fake"
    tokens = [token % 100 for token in TOKENS] if fake else TOKENS
    engine.step([BatchItem(seq, engine.length(seq), tokens[start : start + n])])


def answer(engine: Engine, seq: int) -> list[F32]:
    """The logits of five steps from here on."""
    found = []
    for i in range(5):
        engine.set_sampler(0, Sampling(temperature=0.0))
        engine.step([BatchItem(seq, engine.length(seq), [60 + i], 0)])
        found.append(engine.logits())
    return found


def same(a: list[F32], b: list[F32]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_state_comes_back_bit_by_bit_in_any_sequence(engine: Engine) -> None:
    feed(engine, 0, 100)
    state = engine.export_state(0)
    right = answer(engine, 0)
    engine.drop(0, 0)
    assert not same(answer(engine, 0), right)
    feed(engine, 1, 40, 50)
    engine.load_state(2, 100, state)
    assert engine.length(2) == 100
    assert same(answer(engine, 2), right)
    engine.drop(0, 0)
    engine.load_state(0, 100, state)
    assert same(answer(engine, 0), right), "and again, wherever"


def test_others_do_not_notice(engine: Engine) -> None:
    feed(engine, 1, 40, 50)
    right = answer(engine, 1)
    engine.drop(1, 0)
    feed(engine, 0, 100)
    state = engine.export_state(0)
    feed(engine, 1, 40, 50)
    engine.drop(0, 0)
    engine.load_state(0, 100, state)
    found = answer(engine, 1)
    assert all(np.argmax(a) == np.argmax(b) for a, b in zip(found, right, strict=True))


def test_its_size_is_as_promised(engine: Engine) -> None:
    assert not engine.info.chunkable and engine.info.state is not None
    for n in (1, 2, 65, 150):
        engine.drop(0, 0)
        feed(engine, 0, n)
        assert engine.export_state(0).nbytes == engine.info.state.of(n)


def test_what_was_exported_stays_as_it_is(engine: Engine) -> None:
    feed(engine, 0, 20)
    state = engine.export_state(0)
    before = state.copy()
    feed(engine, 0, 20)
    engine.drop(0, 0)
    feed(engine, 0, 30, 3)
    assert np.array_equal(state, before)


def test_a_sequence_cannot_be_cut(engine: Engine) -> None:
    feed(engine, 0, 20)
    with pytest.raises(EngineFailed, match="cut in the middle"):
        engine.drop(0, 10)
    engine.drop(0, 20)
    assert engine.length(0) == 20
    with pytest.raises(EngineFailed):
        engine.export(0, 0, 10)


def test_states_that_are_none_leave_the_sequence_empty(engine: Engine) -> None:
    feed(engine, 0, 20)
    state = engine.export_state(0)
    engine.drop(0, 0)
    for torn, n in ((state[:-10].copy(), 20), (state, 19)):
        with pytest.raises(EngineFailed):
            engine.load_state(0, n, torn)
        assert engine.length(0) == 0
        feed(engine, 0, 5)
        engine.drop(0, 0)
    engine.load_state(0, 20, state)


def test_states_go_into_empty_sequences_and_out_of_others_only(engine: Engine) -> None:
    feed(engine, 0, 20)
    state = engine.export_state(0)
    with pytest.raises(ValueError, match="not empty"):
        engine.load_state(0, 20, state)
    with pytest.raises(ValueError, match="is empty"):
        engine.export_state(1)
    with pytest.raises(ValueError, match="one token"):
        engine.load_state(1, 0, state)


def test_a_state_needs_free_cells_if_tokens_take_any(engine: Engine) -> None:
    feed(engine, 0, 150)
    state = engine.export_state(0)
    for _ in range(2):
        feed(engine, 0, 150)
    before = engine.length(0)
    assert engine.info.state is not None
    if engine.info.state.token == 0:
        engine.load_state(1, 150, state)
        return
    with pytest.raises(CellsFull):
        engine.load_state(1, 150, state)
    assert engine.length(1) == 0 and engine.length(0) == before


def test_an_engine_of_chunks_has_no_states() -> None:
    engine = FakeEngine(N_CELLS, N_SEQS)
    feed(engine, 0, 20)
    with pytest.raises(EngineFailed):
        engine.export_state(0)
