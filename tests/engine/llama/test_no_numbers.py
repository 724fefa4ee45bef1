"""A model that computes NaN: for one token only, as a value does that f16 cannot hold, or for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Halt
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.sampled_queries import ENOUGH, SampledQueries
from llmaas.errors import ModelUnreadable, NoNumbers
from llmaas.kv_arrays import F32
from tests.support.random_models import write_llama

BAD = 270
PROMPT = list(range(3, 103))
SPOILT = [*PROMPT[:50], BAD, *PROMPT[50:]]


def poison(embeddings: F32) -> None:
    embeddings[BAD] = np.nan


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LlamaEngine]:
    path = write_llama(tmp_path / "m.gguf", replaced={"token_embd.weight": poison})
    made = LlamaEngine(path, n_cells=512, n_seqs=4, n_threads=1)
    for sampler in range(4):
        made.set_sampler(sampler, Sampling(temperature=0.0))
    yield made
    made.close()


def answer(engine: LlamaEngine, seq: int) -> list[int | None]:
    """One token, drawn after PROMPT in a sequence of its own, which is empty again afterwards."""
    found = engine.step([BatchItem(seq, 0, PROMPT, 3)])
    engine.drop(seq, 0)
    return found


def test_what_is_no_numbers_is_taken_back_and_harms_no_other_sequence(engine: LlamaEngine) -> None:
    right = answer(engine, 3)
    engine.step([BatchItem(2, 0, PROMPT[:30])])
    for item in (BatchItem(0, 0, SPOILT), BatchItem(0, 0, SPOILT, 0), BatchItem(2, 30, [BAD], 0)):
        with pytest.raises(NoNumbers) as error:
            engine.step([item])
        assert error.value.items == (0,)
        assert [engine.length(seq) for seq in range(4)] == [0, 0, 30, 0]
        assert answer(engine, 3) == right, "no NaN is left in any cell"


def test_a_token_that_draws_nothing_is_looked_at_too(engine: LlamaEngine) -> None:
    engine.step([BatchItem(0, 0, PROMPT[:30])])
    with pytest.raises(NoNumbers):
        engine.step([BatchItem(0, 30, [BAD])])
    assert engine.length(0) == 30
    engine.step([BatchItem(1, 0, (PROMPT * 3)[:80], 1)])


@pytest.mark.parametrize("sampled", [True, False])
def test_only_the_items_that_are_the_cause_are_named(engine: LlamaEngine, sampled: bool) -> None:
    right = answer(engine, 3)
    prompts = [PROMPT, SPOILT, [*PROMPT, 5], SPOILT[::-1]]
    items = [BatchItem(i, 0, prompt, i if sampled else None) for i, prompt in enumerate(prompts)]
    with pytest.raises(NoNumbers) as error:
        engine.step(items)
    assert error.value.items == (1, 3)
    assert [engine.length(seq) for seq in range(4)] == [0] * 4
    assert answer(engine, 3) == right


def test_steps_in_a_row_end_before_the_one_that_is_no_numbers(engine: LlamaEngine) -> None:
    right = answer(engine, 3)
    (good,) = engine.step([BatchItem(0, 0, PROMPT, 1)])
    assert good is not None
    engine.step([BatchItem(1, 0, PROMPT[:40])])
    items = [BatchItem(0, len(PROMPT), [good], 1), BatchItem(1, 40, [BAD], 2)]
    with pytest.raises(NoNumbers) as error:
        engine.steps(items, 8, 5.0, Halt())
    assert error.value.items == (1,)
    assert (engine.length(0), engine.length(1)) == (len(PROMPT), 40)
    rows = engine.steps(items[:1], 8, 5.0, Halt())
    assert rows and engine.length(0) == len(PROMPT) + len(rows)
    engine.drop(0, 0)
    assert answer(engine, 3) == right


def test_cells_that_were_scrubbed_are_free(engine: LlamaEngine) -> None:
    engine.step([BatchItem(1, 0, PROMPT)])
    before = engine.export(1, 0, len(PROMPT))
    for _ in range(6):
        with pytest.raises(NoNumbers):
            engine.step([BatchItem(0, 0, SPOILT)])
    after = engine.export(1, 0, len(PROMPT))
    assert np.array_equal(before.k, after.k) and np.array_equal(before.v, after.v)
    engine.step([BatchItem(0, 0, PROMPT * 4)])
    assert engine.length(0) == 400


def test_what_all_queries_say_of_keys_stays_finite(engine: LlamaEngine) -> None:
    for _ in range(10):
        with pytest.raises(NoNumbers):
            engine.step([BatchItem(1, 0, SPOILT)])
        engine.drop(0, 0)
        engine.step([BatchItem(0, 0, PROMPT)])
    weights = engine.key_weights()
    assert weights is not None and np.isfinite(weights).all()
    assert engine.take_queries(1) is None


def test_queries_beyond_f16_are_left_out() -> None:
    queries = SampledQueries((1, 2, 4), 1)
    values = np.ones((ENOUGH + 2, 1, 2, 4), np.float32)
    values[3, 0, 1, 2], values[5, 0, 0, 0] = np.nan, 1e30
    queries.add([(0, i) for i in range(len(values))], values)
    weights, taken = queries.key_weights(None), queries.take(0)
    assert weights is not None and np.allclose(weights, 1.0)
    assert taken is not None and not {3, 5} & set(taken.positions) and np.isfinite(taken.values).all()


def test_a_model_that_computes_nan_for_everything_is_refused(tmp_path: Path) -> None:
    def spoil(norm: F32) -> None:
        norm[:] = np.nan

    path = write_llama(tmp_path / "m.gguf", replaced={"blk.0.attn_norm.weight": spoil})
    with pytest.raises(ModelUnreadable, match="NaN"):
        LlamaEngine(path, n_cells=512, n_seqs=1, n_threads=1)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("part", ["k", "v"])
@pytest.mark.parametrize("at", [0, 63, 64, 99])
def test_whichever_value_of_a_long_step_is_no_number_it_is_seen(
    engine: LlamaEngine, value: float, part: str, at: int
) -> None:
    slabs = engine.decoder.numbers.slabs
    assert slabs is not None
    slab = engine.blank(100)
    slab.k[:], slab.v[:] = np.finfo(np.float16).max, np.finfo(np.float16).min
    engine.load(0, 0, slab)
    assert slabs.is_finite(0, 0, 100)
    engine.drop(0, 0)
    getattr(slab, part)[-1, at, -1] = value
    engine.load(0, 0, slab)
    assert not slabs.is_finite(0, 0, 100)
    engine.drop(0, 0)
