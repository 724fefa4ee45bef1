"""The sensitivity worker on an engine with made-up queries: it measures chunks, and gives up those that are dropped."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from llmaas.engine.base import BatchItem
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.kv_arrays import KvSlab, Queries
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.tiering.sensitivity_worker import SensitivityWorker
from llmaas.planner.actions import ChunkSpan, MeasureChunks
from llmaas.planner.events import Measured
from llmaas.records import ChunkKey, ContextId

N_TOKENS = 64 * 5 + 20
SPANS = tuple(ChunkSpan(ChunkKey(bytes([i]) * 16), 64 * i, min(64 * i + 64, N_TOKENS)) for i in range(6))


class Asking(FakeEngine):
    """Every tenth token asked something; exports can be held up, and fail at ``fail_at``."""

    fail_at: int | None = None
    asked: Queries | None

    def __init__(self) -> None:
        super().__init__()
        g, rng = self.info.geometry, np.random.default_rng(0)
        positions = np.arange(5, N_TOKENS + 30, 10, dtype=np.int32)  # some beyond what is to be measured
        shape = (len(positions), g.n_layer, 2 * g.k_dim // g.head_dim_k, g.head_dim_k)
        self.asked = Queries(positions, rng.standard_normal(shape).astype(np.float16))
        self.gate = threading.Event()
        self.gate.set()

    def take_queries(self, seq: int) -> Queries | None:
        taken, self.asked = self.asked, None
        return taken

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        self.gate.wait(10)
        if start == self.fail_at:
            raise RuntimeError("as the test wants")
        return super().export(seq, start, stop)


class Lab:
    def __init__(self) -> None:
        self.thread = EngineThread(Asking)
        engine = self.thread.engine
        assert isinstance(engine, Asking)
        self.engine = engine
        self.worker = SensitivityWorker(self.thread, Codec(engine.info.geometry))
        self.answers: queue.SimpleQueue[Measured] = queue.SimpleQueue()
        self.thread.submit(engine.step, [BatchItem(0, 0, [i % 250 for i in range(N_TOKENS)])]).result()

    def begin(self) -> None:
        self.worker.measure(MeasureChunks(7, ContextId("c"), 0, SPANS), self.answers.put)

    def answer(self) -> Measured:
        found = self.answers.get(timeout=20)
        assert found.measure == 7
        return found


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.engine.gate.set()
    lab.worker.close()
    lab.thread.close()


def test_every_full_chunk_that_queries_look_back_on_is_measured(lab: Lab) -> None:
    lab.begin()
    scores = lab.answer().scores
    assert [key for key, *_ in scores] == [s.key for s in SPANS[:4]], "fewer than four queries lie behind the fifth"
    for _, (k, v, density, weight, at) in scores:
        assert 0 < k < 1 and 0 < v < 1 and 0 < density < 1 and weight > 0 and at <= N_TOKENS


def test_it_rests_while_a_call_waits_for_its_first_token(lab: Lab) -> None:
    lab.worker.rest.told(True)
    lab.begin()
    with pytest.raises(queue.Empty):
        lab.answers.get(timeout=0.3)
    lab.worker.rest.told(False)
    assert len(lab.answer().scores) == 4


def test_it_does_not_rest_for_ever(lab: Lab) -> None:
    lab.worker.rest.told(True)
    lab.begin()
    assert len(lab.answer().scores) == 4, "after a second or so"


def test_a_measurement_that_rests_ends_with_the_worker(lab: Lab) -> None:
    lab.worker.rest.told(True)
    lab.begin()
    while lab.engine.asked is not None:  # until it has begun
        time.sleep(0.001)
    lab.worker.close()
    assert lab.answer().scores == ()


def test_without_queries_the_answer_is_empty(lab: Lab) -> None:
    lab.engine.asked = None
    lab.begin()
    assert lab.answer().scores == ()


def test_queries_of_what_came_later_measure_nothing(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    assert lab.engine.asked is not None
    lab.engine.asked = Queries(lab.engine.asked.positions + N_TOKENS, lab.engine.asked.values)
    lab.begin()
    assert lab.answer().scores == ()
    assert "failed" not in caplog.text


def test_cells_that_are_dropped_meanwhile_are_not_looked_at(lab: Lab) -> None:
    lab.engine.gate.clear()
    lab.begin()
    lab.worker.stop(0)
    dropped = lab.thread.submit(lab.engine.drop, 0, 0)
    lab.engine.gate.set()
    dropped.result()
    assert len(lab.answer().scores) < 4


def test_an_engine_that_fails_costs_the_measurement_and_nothing_else(lab: Lab) -> None:
    lab.engine.fail_at = 128
    lab.begin()
    assert lab.answer().scores == ()
    assert lab.thread.submit(lab.engine.length, 0).result() == N_TOKENS
