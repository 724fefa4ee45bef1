"""The engine's thread: order, errors, and an end that leaves no future open."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future
from typing import NoReturn

import pytest

from llmaas.engine.base import Aborted, BatchItem
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.errors import ModelUnreadable, ShuttingDown

SOON = 10.0


def test_the_engine_is_built_used_and_closed_on_one_thread_of_that_name() -> None:
    seen: list[tuple[str, int]] = []

    class Watched(FakeEngine):
        def close(self) -> None:
            seen.append((threading.current_thread().name, threading.get_ident()))
            super().close()

    def make() -> FakeEngine:
        seen.append((threading.current_thread().name, threading.get_ident()))
        return Watched()

    thread = EngineThread(make, name="the-engine")
    seen.append(thread.submit(lambda: (threading.current_thread().name, threading.get_ident())).result(SOON))
    thread.close()
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0][0] == "the-engine"
    assert seen[0][1] != threading.get_ident()


def test_a_failure_to_build_is_raised_by_the_constructor() -> None:
    def make() -> NoReturn:
        raise ModelUnreadable("no such model")

    before = threading.active_count()
    with pytest.raises(ModelUnreadable, match="no such model"):
        EngineThread(make)
    deadline = time.monotonic() + SOON
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before


def test_jobs_run_in_the_order_of_their_submission() -> None:
    thread = EngineThread(FakeEngine)
    ran: list[int] = []
    futures = [thread.submit(ran.append, i) for i in range(500)]
    for future in futures:
        future.result(SOON)
    assert ran == list(range(500))
    thread.close()


def test_a_job_returns_its_result_or_raises_and_the_thread_lives_on() -> None:
    thread = EngineThread(FakeEngine)
    thread.submit(thread.engine.step, [BatchItem(0, 0, [1, 2, 3])]).result(SOON)
    with pytest.raises(ValueError, match="not 7"):
        thread.submit(thread.engine.step, [BatchItem(0, 7, [1])]).result(SOON)
    assert thread.submit(thread.engine.length, 0).result(SOON) == 3
    assert thread.submit(int, "ff", base=16).result(SOON) == 255
    thread.close()


def test_text_and_abort_need_no_job() -> None:
    thread = EngineThread(lambda: FakeEngine(step_time=lambda tokens: SOON))
    began = threading.Event()

    def step() -> None:
        began.set()
        thread.engine.step([BatchItem(0, 0, [1])])

    running = thread.submit(step)
    assert began.wait(SOON)
    assert thread.engine.tokenize("a", special=False, bos=False) == [97]
    while not running.done():  # an abort before the step has begun is without effect
        thread.engine.abort()
        time.sleep(0.001)
    with pytest.raises(Aborted):
        running.result(SOON)
    thread.close()


def test_a_waiting_job_can_be_cancelled() -> None:
    thread = EngineThread(FakeEngine)
    gate = threading.Event()
    ran: list[str] = []
    thread.submit(gate.wait, SOON)
    waiting = thread.submit(ran.append, "cancelled")
    last = thread.submit(ran.append, "last")
    assert waiting.cancel()
    gate.set()
    last.result(SOON)
    assert ran == ["last"]
    thread.close()


def test_closing_finishes_the_running_job_and_cancels_the_waiting_ones() -> None:
    thread = EngineThread(FakeEngine)
    began, gate = threading.Event(), threading.Event()

    def run() -> str:
        began.set()
        gate.wait(SOON)
        return "finished"

    running = thread.submit(run)
    waiting: list[Future[int]] = [thread.submit(int) for _ in range(20)]
    assert began.wait(SOON)
    closer = threading.Thread(target=thread.close)
    closer.start()
    while True:
        try:
            waiting.append(thread.submit(int))
        except ShuttingDown:
            break
    gate.set()
    closer.join(SOON)
    assert not closer.is_alive()
    assert running.result(0) == "finished"
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(0)


def test_closing_aborts_a_long_step() -> None:
    thread = EngineThread(lambda: FakeEngine(step_time=lambda tokens: 60.0))
    running = thread.submit(thread.engine.step, [BatchItem(0, 0, [1])])
    while not running.running():
        time.sleep(0.001)
    began = time.monotonic()
    thread.close()
    assert time.monotonic() - began < SOON
    assert isinstance(running.exception(0), Aborted)


def test_an_engine_that_is_left_takes_no_job_and_stays_as_it_is() -> None:
    closed = list[bool]()

    class Watched(FakeEngine):
        def close(self) -> None:
            closed.append(True)

    thread = EngineThread(Watched)
    assert thread.submit(lambda: "last").result(SOON) == "last"
    thread.leave()
    with pytest.raises(ShuttingDown):
        thread.submit(lambda: None)
    assert not closed


def test_closing_twice_is_once_and_no_job_is_taken_after_it() -> None:
    thread = EngineThread(FakeEngine)
    thread.close()
    thread.close()
    with pytest.raises(ShuttingDown):
        thread.submit(int)


def test_neither_a_job_nor_its_failure_keeps_its_arguments_alive() -> None:
    class Slab:
        pass

    def fail(slab: Slab) -> None:
        raise ValueError("no")

    thread = EngineThread(FakeEngine)
    gc.disable()
    try:
        slab = Slab()
        gone = weakref.ref(slab)
        with pytest.raises(ValueError, match="no"):
            thread.submit(fail, slab).result(SOON)
        del slab
        deadline = time.monotonic() + SOON
        while gone() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert gone() is None
    finally:
        gc.enable()
    thread.close()
