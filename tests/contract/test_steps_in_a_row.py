"""Steps in a row say and leave what single steps do, on the fake engine and on llama.cpp."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Engine, Halt
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.records import Message
from tests.contract.support import begin, feed

HOT = Sampling(temperature=0.9, seed=11, repeat_penalty=1.1)
LONG = 60.0


def follow(items: list[BatchItem], row: list[int]) -> list[BatchItem]:
    return [BatchItem(item.seq, item.pos + 1, [token], item.sampler) for item, token in zip(items, row, strict=True)]


def one_by_one(engine: Engine, items: list[BatchItem], n: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for _ in range(n):
        rows.append([token for token in engine.step(items) if token is not None])
        items = follow(items, rows[-1])
    return rows


def in_a_row(engine: Engine, items: list[BatchItem], n: int) -> list[list[int]]:
    rows: list[list[int]] = []
    while len(rows) < n:
        found = engine.steps(items, n - len(rows), LONG, Halt())
        assert 1 <= len(found) <= n - len(rows)
        assert [engine.length(item.seq) for item in items] == [item.pos + len(found) for item in items]
        rows += found
        items = [BatchItem(i.seq, i.pos + len(found), [t], i.sampler) for i, t in zip(items, rows[-1], strict=True)]
    return rows


@pytest.mark.parametrize("samplings", [[Sampling()], [HOT], [Sampling(), HOT, Sampling(temperature=1.5, seed=3)]])
def test_steps_in_a_row_draw_and_leave_what_single_steps_do(engine: Engine, samplings: list[Sampling]) -> None:
    seqs = range(len(samplings))
    wanted = one_by_one(engine, begin(engine, 20, samplings), 30)
    truth = engine.logits()
    rows = [engine.export(i, 0, engine.length(i)) for i in seqs]
    queries = [engine.take_queries(i) for i in seqs]
    assert in_a_row(engine, begin(engine, 20, samplings), 30) == wanted
    assert np.array_equal(engine.logits(), truth)
    for i, row in zip(seqs, rows, strict=True):
        again = engine.export(i, 0, engine.length(i))
        assert np.array_equal(again.k, row.k) and np.array_equal(again.v, row.v)
    for i, before in zip(seqs, queries, strict=True):
        after = engine.take_queries(i)
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert np.array_equal(before.positions, after.positions)
            assert np.array_equal(before.values, after.values)


def test_a_run_ends_with_the_token_that_ends_an_answer(engine: Engine) -> None:
    ends = [token for token in range(engine.info.n_vocab) if engine.is_end(token)]
    hot = Sampling(temperature=10.0, top_k=0, top_p=1.0, min_p=0.0)
    for _ in range(6):
        rows = engine.steps(begin(engine, 12, [hot]), 64, LONG, Halt())
        assert not any(token in ends for row in rows[:-1] for token in row)


def test_a_run_ends_where_single_steps_would_end(engine: Engine) -> None:
    if not isinstance(engine, LlamaEngine):
        pytest.skip("answers of the made-up engine do not end")
    if "LLMAAS_TEST_LAYERS" in os.environ:
        pytest.skip("answers of a model's first layers do not end")
    question = engine.render([Message("user", "Is the sea wet? Say yes or no.")], answer=True)
    text = engine.tokenize(question, special=True, bos=True)
    feed(engine, 0, text[:-1])
    engine.set_sampler(0, Sampling())
    first = [BatchItem(0, len(text) - 1, text[-1:], 0)]
    wanted, items = one_by_one(engine, first, 1), first
    while not engine.is_end(wanted[-1][0]):
        assert len(wanted) < 200, "the model does not end its answer"
        items = follow(items, wanted[-1])
        wanted += one_by_one(engine, items, 1)
    engine.drop(0, len(text) - 1)
    rows = engine.steps(first, 64, LONG, Halt())
    while not engine.is_end(rows[-1][0]):
        rows += engine.steps([BatchItem(0, engine.length(0), rows[-1], 0)], 64, LONG, Halt())
    assert rows == wanted


def test_a_run_is_halted_from_another_thread_and_by_time(engine: Engine) -> None:
    halt = Halt()
    halt.set()
    assert len(engine.steps(begin(engine, 12, [Sampling()]), 64, LONG, halt)) == 1
    halt.clear()
    if isinstance(engine, LlamaEngine):
        assert len(engine.steps(begin(engine, 12, [Sampling()]), 64, 0.0, halt)) == 1
        items = begin(engine, 12, [Sampling()])
        timer = threading.Timer(0.01, halt.set)
        timer.start()
        began, n = time.perf_counter(), 0
        while not halt.is_set:
            rows = engine.steps(items, 64, LONG, halt)
            n += len(rows)
            items = follow([BatchItem(0, engine.length(0) - 1, [0], 0)], rows[-1])
        assert time.perf_counter() - began < 5.0


def test_a_run_that_is_aborted_leaves_what_it_had_done(engine: Engine) -> None:
    if not isinstance(engine, LlamaEngine):
        pytest.skip("steps of the made-up engine take no time")
    for delay in (0.001, 0.01, 0.03, 0.05):
        items = begin(engine, 12, [Sampling()])
        timer = threading.Timer(delay, engine.abort)
        timer.start()
        try:
            rows = engine.steps(items, 64, LONG, Halt())
        except Exception as error:
            assert "aborted" in str(error)
            rows = []
        timer.join()
        assert engine.length(0) == items[0].pos + len(rows)
        wanted = one_by_one(engine, begin(engine, 12, [Sampling()]), max(1, len(rows)))
        assert rows == wanted[: len(rows)]


def test_a_run_keeps_the_rules_of_a_step(engine: Engine) -> None:
    items = begin(engine, 12, [Sampling()])
    with pytest.raises(ValueError, match="long"):
        engine.steps([BatchItem(0, 3, [1], 0)], 4, LONG, Halt())
    with pytest.raises(ValueError, match="no sampler"):
        engine.steps([BatchItem(0, items[0].pos, [1], 77)], 4, LONG, Halt())
    assert engine.length(0) == items[0].pos
