"""One thread for the jobs of many owners."""

from __future__ import annotations

import asyncio
import threading
from concurrent import futures

import pytest

from llmaas import fair_thread
from llmaas.errors import ShuttingDown
from llmaas.fair_thread import FairThread
from tests.support.loop import on_a_loop


def test_owners_take_turns_and_each_owners_jobs_keep_their_order() -> None:
    thread, gate, done = FairThread("test"), threading.Event(), list[str]()
    thread.submit("gate", gate.wait)
    for i in range(4):
        thread.submit("greedy", done.append, f"greedy {i}")
    for i in range(2):
        thread.submit("modest", done.append, f"modest {i}")
    gate.set()
    thread.close()
    assert done == ["greedy 0", "modest 0", "greedy 1", "modest 1", "greedy 2", "greedy 3"]


@on_a_loop
async def test_results_and_errors_come_back_and_the_thread_lives_on() -> None:
    thread = FairThread("test")
    assert await thread.run("a", divmod, 7, 3) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        await thread.run("a", divmod, 7, 0)
    assert await thread.run("a", threading.get_ident) != threading.get_ident()
    thread.close()
    with pytest.raises(ShuttingDown):
        await thread.run("a", divmod, 7, 3)


@on_a_loop
async def test_a_job_whose_caller_has_gone_is_not_done() -> None:
    thread, gate, done = FairThread("test"), threading.Event(), list[int]()
    thread.submit("a", gate.wait)
    waiting = asyncio.create_task(thread.run("a", done.append, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    gate.set()
    thread.close()
    assert done == []


@on_a_loop
async def test_a_caller_that_holds_a_lock_waits_for_the_end_of_its_job_though_it_is_cancelled() -> None:
    thread, gate, begun, done = FairThread("test"), threading.Event(), threading.Event(), list[str]()

    def job() -> None:
        begun.set()
        gate.wait()
        done.append("job")

    async def call() -> None:
        try:
            await thread.run_to_end("a", job)
        finally:
            done.append("lock free")

    running, waiting = asyncio.create_task(call()), asyncio.create_task(thread.run_to_end("b", done.append, "never"))
    assert await asyncio.to_thread(begun.wait, 5)
    for task in (running, waiting, running):
        task.cancel()
        await asyncio.sleep(0.01)
    assert waiting.cancelled() and not running.done() and done == []
    gate.set()
    await asyncio.wait([running])
    assert running.cancelled() and done == ["job", "lock free"]
    with pytest.raises(ZeroDivisionError):
        await thread.run_to_end("a", divmod, 7, 0)
    thread.close()
    assert done == ["job", "lock free"]


@on_a_loop
async def test_jobs_that_wait_end_with_shutting_down_if_they_are_not_to_be_finished() -> None:
    thread, gate, begun = FairThread("test"), threading.Event(), threading.Event()
    running, waiting = thread.submit("a", lambda: (begun.set(), gate.wait())[1]), thread.submit("a", gate.wait)
    assert await asyncio.to_thread(begun.wait, 5)
    closing = asyncio.create_task(asyncio.to_thread(thread.close, finish=False))
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(asyncio.wrap_future(waiting), 5)
    gate.set()
    await closing
    assert running.result() is True


class Resting:
    """A thread that would rest for an hour, with a job of ``greedy`` done and more of its jobs waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fair_thread, "MOST_REST_S", 3600)
        self.thread, gate, self.done = FairThread("test", rest=1e9), threading.Event(), list[str]()
        self.thread.submit("greedy", gate.wait)
        first = self.thread.submit("greedy", self.work, "greedy 0")
        for i in range(1, 10):
            self.thread.submit("greedy", self.done.append, f"greedy {i}")
        gate.set()
        with pytest.raises(futures.TimeoutError):
            first.result(0.2)  # after the gate's job it rests already
        self.thread.submit("first", int).result(60)
        assert self.done == ["greedy 0"]

    def work(self, name: str) -> None:
        self.done.append(name)


def test_a_thread_rests_while_jobs_wait_but_no_owners_first_job_waits_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    resting = Resting(monkeypatch)
    for name in ("one", "two"):
        resting.thread.submit(name, resting.work, name).result(60)
    assert resting.done[-1] == "two" and resting.done.count("one") == 1
    with pytest.raises(futures.TimeoutError):
        resting.thread.submit("greedy", resting.work, "last").result(0.2)
    resting.thread.close()
    assert resting.done[-1] == "last"


def test_a_thread_that_rests_ends_at_once_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    resting = Resting(monkeypatch)
    resting.thread.close()
    assert resting.done == [f"greedy {i}" for i in range(10)]


def test_a_thread_whose_jobs_are_done_by_others_rests_by_the_clock_it_is_given() -> None:
    times = iter(range(100))
    thread, gate, done = FairThread("test", 1e9, lambda: float(next(times))), threading.Event(), list[str]()
    thread.submit("greedy", gate.wait)
    thread.submit("greedy", done.append, "greedy")
    gate.set()
    thread.submit("first", int).result(60)
    thread.close()
    assert done == ["greedy"]
