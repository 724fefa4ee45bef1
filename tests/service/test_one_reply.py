"""Every request gets its one reply, whatever fails beneath it, and what one app's slow work holds up is its own."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import Sampling
from llmaas.engine.base import Prepared
from llmaas.engine.fake import FakeEngine
from llmaas.engine.fake import engine as fake_engine
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.events import StepDone
from llmaas.planner.planner import Planner
from llmaas.records import AppId
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

TEXT = "It is a truth universally acknowledged. "
OTHER = AppId("1000/other")
SOON = 5.0
SLOW, QUICK = Sampling(grammar='root ::= "a"+'), Sampling(grammar='root ::= "b"+')
NO_MEMORY = MemoryError()
NO_FILES = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
NO_THREADS = RuntimeError("can't start new thread")


@contextmanager
def failing(
    owner: Any, name: str, error: Exception, when: Callable[..., bool] = lambda *_, **__: True
) -> Iterator[None]:
    """Within the block, calls of the method raise such an error as ``error``: each its own, since an error that was
    raised refers to all that it passed through, and ``error`` may live as long as this module."""
    real = getattr(owner, name)

    def fail(*args: Any, **options: Any) -> Any:
        if when(*args, **options):
            raise type(error)(*error.args)
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


async def goes_on(h: House, context: str = "x") -> None:
    """The context takes turns, and is in memory what it is in the store."""
    _, done = await asyncio.wait_for(h.say(context, "and?", 4), SOON)
    assert done.n_tokens == len(h.tokens(context))


@pytest.mark.parametrize("error", [NO_MEMORY, NO_FILES], ids=["memory", "files"])
@pytest.mark.parametrize(
    ("owner", "name", "stop"),
    [
        (FakeEngine, "tokenize", ()),
        (fake_engine, "check_step", ()),
        (FakeEngine, "piece", ()),
        (FakeEngine, "piece", ("never",)),
        (Store, "append", ()),
    ],
    ids=["text", "step", "piece on the loop", "piece in a step", "append"],
)
@on_a_loop
async def test_a_call_that_a_fault_ends_is_told_so_and_leaves_nothing(
    tmp_path: Path, owner: object, name: str, stop: tuple[str, ...], error: Exception
) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        await h.say("x", TEXT, 4)
        before = h.tokens("x")
        with (
            failing(owner, name, error),
            pytest.raises((errors.Internal, errors.NoMemory, errors.EngineFailed)) as caught,
        ):
            await asyncio.wait_for(h.say("x", "hi", 40, stop=stop), SOON)
        if isinstance(error, MemoryError):
            assert "memory" in caught.value.message.lower() or caught.type is errors.EngineFailed
        assert h.tokens("x") == before
        assert not h.service.stats()["requests"]["active"]  # type: ignore[index]
        await goes_on(h)


@on_a_loop
async def test_a_reply_does_not_wait_for_what_is_tidied_up_behind_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)

        def of_a_sampler(*args: Any, **_: Any) -> bool:
            return args[0] == h.thread.engine.set_sampler and args[2] is None

        with failing(h.thread, "submit", NO_MEMORY, of_a_sampler):
            await asyncio.wait_for(h.say("x", TEXT, 4), SOON)
        await goes_on(h)


@on_a_loop
async def test_when_no_worker_takes_its_work_calls_are_told_so_or_recompute(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 256, "n_seqs": 2}) as h:
        for name in ("x", "y", "z"):
            await h.service.create(APP, name=name, system=None)
        for _ in range(2):
            for name in ("x", "y", "z"):
                await h.say(name, TEXT * 2, 4)
        await h.service.wait_idle()
        with failing(Workers, "submit", NO_THREADS):
            for name in ("x", "y", "z"):
                with suppress(errors.EngineFailed):
                    await asyncio.wait_for(h.say(name, "and?", 4), SOON)
            await asyncio.wait_for(h.service.wait_idle(), SOON)
        for name in ("x", "y", "z"):
            await goes_on(h, name)


@on_a_loop
async def test_when_the_planner_fails_every_call_is_told_so_and_the_service_says_it_must_end(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", TEXT, 4)
        before = h.tokens("x")
    with pytest.raises(AssertionError):  # its books are not clean at the end
        async with house(tmp_path) as h:
            failed = asyncio.create_task(h.service.failed())
            with failing(Planner, "handle", errors.PolicyBug("wrong books"), lambda _, e, *__: isinstance(e, StepDone)):
                jobs = [asyncio.create_task(h.say("x", str(i), 4)) for i in range(3)]
                for job in jobs:
                    with pytest.raises(errors.Internal, match="wrong books"):
                        await asyncio.wait_for(job, SOON)
            assert "wrong books" in (await asyncio.wait_for(failed, SOON)).message
            with pytest.raises(errors.Internal, match="wrong books"):
                await asyncio.wait_for(h.say("x", "hi", 4), SOON)
            began = time.monotonic()
            await h.service.stop()
            assert time.monotonic() - began < 2
            raise AssertionError
    async with house(tmp_path) as h:
        assert h.tokens("x") == before
        await goes_on(h)


class Gate:
    """Where threads wait until the test lets them pass; those that wait are counted."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.waiting = 0

    def wait(self) -> None:
        self.waiting += 1
        assert self.opened.wait(60)

    async def until(self, n: int) -> None:
        late = time.monotonic() + SOON
        while self.waiting < n:
            assert time.monotonic() < late
            await asyncio.sleep(0.002)


@on_a_loop
async def test_files_that_do_not_answer_hold_up_neither_other_requests_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr("llmaas.service.adapters.examine", lambda *_: gate.wait())
    async with house(tmp_path) as h:
        adds = [asyncio.create_task(h.service.adapters.add(f"a{i}", f"/a{i}")) for i in range(64)]
        await gate.until(1)
        await h.service.create(APP, name="x", system=None)
        await goes_on(h)
        await asyncio.wait_for(h.say("x", "hi", 4, sampling=QUICK), SOON)
        await asyncio.wait_for(h.service.delete(APP, "x"), SOON)
        began = time.monotonic()
        await h.service.stop()
        assert time.monotonic() - began < 2
        ends = await asyncio.gather(*adds[1:], return_exceptions=True)
        assert {type(end) for end in ends} == {errors.ShuttingDown}
        gate.opened.set()
        await asyncio.gather(adds[0], return_exceptions=True)


class SlowGrammars(FakeEngine):
    gate = Gate()

    def check_sampling(self, sampling: Sampling) -> Prepared | None:
        if sampling == SLOW:
            self.gate.wait()
        return super().check_sampling(sampling)


@on_a_loop
async def test_grammars_that_take_long_hold_up_neither_other_requests_nor_the_end(tmp_path: Path) -> None:
    SlowGrammars.gate = gate = Gate()
    async with house(tmp_path, engine_type=SlowGrammars) as h:
        for i in range(20):
            await h.service.create(APP, name=f"s{i}", system=None)
        slow = [asyncio.create_task(h.say(f"s{i}", "hi", 4, sampling=SLOW)) for i in range(20)]
        await gate.until(1)
        await h.service.create(OTHER, name="x", system=None)
        await asyncio.wait_for(h.say("x", "hi", 4, app=OTHER), SOON)
        await asyncio.wait_for(h.service.delete(OTHER, "x"), SOON)
        began = time.monotonic()
        await h.service.stop()
        assert time.monotonic() - began < 2
        ends = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(end) for end in ends} == {errors.ShuttingDown}
        gate.opened.set()


@on_a_loop
async def test_an_app_waits_for_one_grammar_of_each_other_app_at_most(tmp_path: Path) -> None:
    SlowGrammars.gate = gate = Gate()
    async with house(tmp_path, engine_type=SlowGrammars) as h:
        for i in range(5):
            await h.service.create(APP, name=f"s{i}", system=None)
        slow = [asyncio.create_task(h.say(f"s{i}", "hi", 4, sampling=SLOW)) for i in range(5)]
        await gate.until(1)
        await h.service.create(OTHER, name="x", system=None)
        quick = asyncio.create_task(h.say("x", "hi", 4, app=OTHER, sampling=QUICK))
        await asyncio.sleep(0.01)
        gate.opened.set()
        gate.waiting = 0
        await asyncio.wait_for(quick, SOON)
        await asyncio.gather(*slow)


@on_a_loop
async def test_the_service_ends_at_once_while_a_context_is_being_deleted_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        for name in ("x", "y", "z"):
            await h.service.create(APP, name=name, system=None)
        real = Store.delete_context

        def slow(*args: Any) -> Any:
            time.sleep(0.3)
            return real(*args)

        monkeypatch.setattr(Store, "delete_context", slow)
        deleting = [asyncio.create_task(h.service.delete(APP, name)) for name in ("x", "y", "z")]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await h.service.stop()
        assert time.monotonic() - began < 1, "the one that runs is finished; those that wait are not begun"
        ends = await asyncio.gather(*deleting, return_exceptions=True)
        assert [type(end) for end in ends[1:]] == [errors.ShuttingDown] * 2


def test_workers_all_begin_at_once_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(3, "test")
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("test_")}
    assert len(names) == 3
    assert workers.submit(lambda: 7).result(SOON) == 7
    workers.shutdown()
    real, started = threading.Thread.start, list[str]()

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("few_"):
            started.append(thread.name)
            if len(started) > 2:
                raise NO_THREADS
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="new thread"):
        Workers(3, "few")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("few_")]
