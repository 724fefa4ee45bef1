"""What every engine promises of steps: what they append and draw, abort, and full cells."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import Aborted, BatchItem, CellsFull, Engine
from llmaas.kv_arrays import KvSlab
from llmaas.records import CHUNK_TOKENS
from tests.contract.support import Logits, N, assert_close, feed, load_all, probe, text_tokens

# -- steps


def test_a_step_appends_its_tokens_and_draws_only_where_asked(engine: Engine) -> None:
    engine.set_sampler(1, Sampling())
    drawn = engine.step([BatchItem(0, 0, text_tokens(engine, 5)), BatchItem(1, 0, text_tokens(engine, 3), 1)])
    assert drawn[0] is None
    assert drawn[1] is not None and 0 <= drawn[1] < engine.info.n_vocab
    assert [engine.length(seq) for seq in range(3)] == [5, 3, 0]


def test_the_greedy_token_is_the_highest_logit(engine: Engine) -> None:
    engine.set_sampler(0, Sampling(temperature=0.0))
    (drawn,) = engine.step([BatchItem(0, 0, text_tokens(engine, 20), 0)])
    assert drawn == int(np.asarray(engine.logits()).argmax())


def test_logits_belong_to_a_step_that_sampled(engine: Engine) -> None:
    feed(engine, 0, text_tokens(engine, 4))
    with pytest.raises(ValueError, match="drew nothing"):
        engine.logits()


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (BatchItem(0, 4, [65]), "long"),
        (BatchItem(0, 6, [65]), "long"),
        (BatchItem(0, 5, []), "at least one token"),
        (BatchItem(0, 5, [65], 0), "no sampler 0"),
        (BatchItem(4, 0, [65]), "not in"),
        (BatchItem(-1, 0, [65]), "not in"),
        (BatchItem(0, 5, [65] * 513), "a step holds"),
    ],
)
def test_a_step_that_breaks_a_rule_is_refused_and_changes_nothing(engine: Engine, item: BatchItem, why: str) -> None:
    feed(engine, 0, text_tokens(engine, 5))
    with pytest.raises(ValueError, match=why):
        engine.step([BatchItem(1, 0, [65, 66]), item])
    assert (engine.length(0), engine.length(1)) == (5, 0)


def test_a_sequence_may_appear_once_in_a_step(engine: Engine) -> None:
    with pytest.raises(ValueError, match="once"):
        engine.step([BatchItem(0, 0, [65]), BatchItem(0, 0, [66])])
    with pytest.raises(ValueError, match="a step holds"):
        engine.step([])


def test_sequences_in_one_batch_do_not_see_each_other(engine: Engine) -> None:
    texts = [text_tokens(engine, 40, skip) for skip in (0, 100, 200)]
    alone = []
    for text in texts:
        feed(engine, 0, text)
        alone.append(probe(engine))
        engine.drop(0, 0)
    engine.step([BatchItem(seq, 0, text) for seq, text in enumerate(texts)])
    for seq, logits in enumerate(alone):
        for other in alone[:seq] + alone[seq + 1 :]:
            assert_close(engine, probe(engine, seq), logits, other)


# -- abort and full cells


def test_an_aborted_step_leaves_the_sequences_as_they_were(
    engine: Engine, slabs: list[KvSlab], caplog: pytest.LogCaptureFixture
) -> None:
    load_all(engine, 0, slabs[:2])
    before = probe(engine)
    long = BatchItem(0, 2 * CHUNK_TOKENS, text_tokens(engine, 470))
    short = BatchItem(1, 0, text_tokens(engine, 20, skip=30))
    began = time.monotonic()
    engine.step([long, short])
    seconds = time.monotonic() - began
    wanted = probe(engine)
    engine.drop(0, 2 * CHUNK_TOKENS)
    engine.drop(1, 0)

    for part in (0.35, 0.1, 0.01):  # the first is after the first of llama.cpp's four part-batches, the others if late
        if aborted(engine, [long, short], part * seconds):
            break
        engine.drop(0, 2 * CHUNK_TOKENS)
        engine.drop(1, 0)
    else:
        pytest.fail("the step was over before it could be aborted")
    assert (engine.length(0), engine.length(1)) == (2 * CHUNK_TOKENS, 0)
    assert np.array_equal(probe(engine), before)
    engine.step([long, short])
    assert np.array_equal(probe(engine), wanted)
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING], "it was asked to"


def aborted(engine: Engine, items: list[BatchItem], seconds: float) -> bool:
    """Step, and abort the step after so many seconds; False if it was over by then."""
    over = threading.Event()

    def abort() -> None:
        over.wait(seconds)
        while not over.wait(0.001):
            engine.abort()

    thread = threading.Thread(target=abort)
    thread.start()
    try:
        engine.step(items)
    except Aborted:
        return True
    finally:
        over.set()
        thread.join()
    return False


def test_an_abort_with_no_step_running_has_no_effect(engine: Engine) -> None:
    engine.abort()
    feed(engine, 0, text_tokens(engine, 5))
    assert engine.length(0) == 5


def test_a_step_without_free_cells_changes_nothing(engine: Engine, slabs: list[KvSlab], truth: Logits) -> None:
    load_all(engine, 0, slabs)
    rest = engine.n_cells - N
    feed(engine, 1, text_tokens(engine, 500), 500)
    feed(engine, 2, text_tokens(engine, rest - 510), 500)
    more = [BatchItem(0, N, text_tokens(engine, 6)), BatchItem(3, 0, text_tokens(engine, 5))]
    with pytest.raises(CellsFull):
        engine.step(more)
    assert [engine.length(seq) for seq in range(4)] == [N, 500, rest - 510, 0]
    with pytest.raises(CellsFull):
        engine.load(3, 0, slabs[0])
    assert engine.length(3) == 0
    engine.drop(2, rest - 511)
    engine.step(more)  # eleven cells for eleven tokens
    engine.drop(0, N)
    for seq in (1, 2, 3):
        engine.drop(seq, 0)
    assert np.array_equal(probe(engine), truth)


def test_a_slab_longer_than_all_cells_does_not_fit(engine: Engine) -> None:
    with pytest.raises(CellsFull):
        engine.load(0, 0, engine.blank(engine.n_cells + 1))
    assert engine.length(0) == 0
