"""A call is cancelled, or its client disconnects, at each stage: it ends within the running step, and frees all it had.

Nothing here is left to chance: engine, disk and commits wait at gates that the test opens. A call is brought to its
stage and ended there while a gate is shut. Then no more may pass the gates than ``Scene`` says.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.async_client import AsyncClient, AsyncStream
from llmaas.calls import DEFAULT_TERMS, Generation, Terms
from llmaas.engine.base import BatchItem, Row
from llmaas.engine.fake import FakeEngine
from llmaas.errors import Cancelled, Expired
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.store.store import Store
from llmaas.records import NO_QUOTA, Message
from tests.support.books import book_of
from tests.support.daemon import CELLS, HELLO, SOON, Daemon, active, answer_to, ask, serving
from tests.support.loop import on_a_loop
from tests.support.oracle import Oracle

LENGTH = 600
"""About the tokens of a context's first message. Two such contexts do not fit into CELLS together."""
ENDLESS = 2000
"""Tokens to generate: more than there are cells."""


class Gate:
    """Lets all callers through until it is shut, and then as many as ``let`` says."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._room = math.inf
        self.came = self.waiting = 0

    def pass_through(self) -> None:
        with self._moved:
            self.came += 1
            self.waiting += 1
            assert self._moved.wait_for(lambda: self._room > 0, SOON), "the gate was never opened again"
            self.waiting -= 1
            self._room -= 1

    def shut(self) -> None:
        self._room = 0

    def let(self, n: float = math.inf) -> None:
        with self._moved:
            self._room = n
            self._moved.notify_all()

    async def somebody_waits(self) -> None:
        await until(lambda: self.waiting > 0, "nobody came to the gate")


@dataclass
class Gates:
    step: Gate = field(default_factory=Gate)
    load: Gate = field(default_factory=Gate)
    read: Gate = field(default_factory=Gate)
    commit: Gate = field(default_factory=Gate)

    def open(self) -> None:
        for gate in (self.step, self.load, self.read, self.commit):
            gate.let()


class GatedEngine(FakeEngine):
    def __init__(self, *args: Any, gates: Gates, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gates = gates

    @property
    def n_samplers(self) -> int:
        return len(self._samplers)

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        self.gates.step.pass_through()
        return super().step(items, adapter, draw_s=draw_s)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        self.gates.load.pass_through()
        super().load(seq, start, slab)


class GatedStore(Store):
    gates: Gates

    def get(self, keys: Any, **how: Any) -> Any:
        self.gates.read.pass_through()
        return super().get(keys, **how)

    def append(self, *args: Any, **options: Any) -> int:
        self.gates.commit.pass_through()
        return super().append(*args, **options)


def gated_store(root: Path, gates: Gates) -> Store:
    store = GatedStore(root)
    store.gates = gates
    return store


async def until(true: Callable[[], bool], otherwise: str, seconds: float = SOON) -> None:
    for _ in range(int(seconds / 0.002)):
        if true():
            return
        await asyncio.sleep(0.002)
    raise AssertionError(otherwise)


@dataclass
class Setup:
    """A daemon behind gates. Calls of ``client`` end early; ``boss`` is of the same app, which has contexts c, d, e."""

    daemon: Daemon
    gates: Gates
    client: AsyncClient
    boss: AsyncClient

    async def talk(self, name: str) -> None:
        await ask(self.boss, name, f"{name}" * LENGTH, n=2)
        await self.daemon.until_idle()

    async def push_out(self, *, pool: bool = True, disk: bool = True) -> None:
        """Bring the context c out of the cells; without ``pool`` out of the POOL, without ``disk`` off DISK, too."""
        await self.talk("c")
        await self.talk("d")
        if not pool:
            await self.boss.budget(pool_bytes=0, disk_bytes=None if disk else 0)
            await self.boss.budget(pool_bytes=1 << 20, disk_bytes=NO_QUOTA)
        tiers = (await self.boss.show("c")).info.tiers
        assert tiers[0] == 0 and bool(tiers[1]) == pool and (disk or not tiers[2]), tiers

    async def begin(self, text: str = "hello", terms: Terms = DEFAULT_TERMS) -> AsyncStream:
        stream = self.client.generate("c", [Message("user", text)], max_tokens=ENDLESS, terms=terms)
        await self.client.ping()  # after its reply the daemon has the call, too
        return stream


@dataclass(frozen=True)
class Scene:
    """``bring`` brings a call to its stage; so many ``steps`` and ``loads`` may pass the gates until it has ended."""

    bring: Callable[[Setup], Awaitable[AsyncStream]]
    steps: int = 0
    loads: int = 0
    others: int = 0
    """Calls of the boss that are still active then."""
    settings: dict[str, Any] = field(default_factory=dict)


async def behind_another_of_its_context(setup: Setup) -> AsyncStream:
    runner = setup.boss.generate("c", HELLO, max_tokens=ENDLESS)
    await anext(runner)
    setup.gates.step.shut()
    await setup.gates.step.somebody_waits()
    return await setup.begin()


async def queued(setup: Setup) -> AsyncStream:
    runner = setup.boss.generate("d", HELLO, max_tokens=ENDLESS)
    await anext(runner)
    setup.gates.step.shut()
    await setup.gates.step.somebody_waits()
    return await setup.begin()


async def loading_from_the_pool(setup: Setup) -> AsyncStream:
    await setup.push_out()
    setup.gates.load.shut()
    stream = await setup.begin()
    await setup.gates.load.somebody_waits()
    return stream


async def loading_from_disk(setup: Setup) -> AsyncStream:
    await setup.push_out(pool=False)
    setup.gates.read.shut()
    stream = await setup.begin()
    await setup.gates.read.somebody_waits()
    return stream


async def computing_while_the_rest_is_read(setup: Setup) -> AsyncStream:
    await setup.push_out(pool=False)
    setup.gates.read.shut()
    stream = await setup.begin()
    await setup.gates.read.somebody_waits()
    setup.gates.step.shut()
    await asyncio.sleep(0.3)  # the disk is slow, so some chunks are computed
    setup.gates.read.let(1)
    await setup.gates.read.somebody_waits()
    await setup.gates.step.somebody_waits()
    return stream


async def recomputing(setup: Setup) -> AsyncStream:
    await setup.push_out(pool=False, disk=False)
    setup.gates.step.shut()
    stream = await setup.begin()
    await setup.gates.step.somebody_waits()
    return stream


async def prefilling(setup: Setup) -> AsyncStream:
    setup.gates.step.shut()
    stream = await setup.begin("x" * LENGTH)
    await setup.gates.step.somebody_waits()
    return stream


async def decoding(setup: Setup) -> AsyncStream:
    stream = await setup.begin()
    await anext(stream)
    setup.gates.step.shut()
    await setup.gates.step.somebody_waits()
    return stream


async def paused(setup: Setup) -> AsyncStream:
    stream = await setup.begin(terms=Terms(priority=9))
    await anext(stream)
    urgent = setup.boss.generate("d", HELLO, max_tokens=ENDLESS, terms=Terms(priority=0))
    await anext(urgent)
    setup.gates.step.shut()
    await setup.gates.step.somebody_waits()
    counts = setup.daemon.service.stats()["counts"]
    assert isinstance(counts, dict) and counts["pauses"] == 1
    return stream


async def held_by_a_limit(setup: Setup) -> AsyncStream:
    stream = await setup.begin(terms=Terms(rate=0.01))
    await anext(stream)
    await asyncio.sleep(0.1)
    assert len(stream.text) < 20
    return stream


SCENES = [
    Scene(behind_another_of_its_context, others=1),
    Scene(queued, others=1, settings={"max_running": 1}),
    Scene(loading_from_the_pool, loads=6),  # of ten: four are decoded ahead, one is being loaded
    Scene(loading_from_disk),
    Scene(computing_while_the_rest_is_read, steps=1, settings={"split": "balanced"}),
    Scene(recomputing, steps=1),
    Scene(prefilling, steps=1),
    Scene(decoding, steps=1),
    Scene(paused, others=1, settings={"max_running": 1}),
    Scene(held_by_a_limit),
]


@asynccontextmanager
async def opened(root: Path, **settings: Any) -> AsyncIterator[Setup]:
    gates = Gates()
    parts: dict[str, Any] = {
        "engine": partial(GatedEngine, gates=gates),
        "store": partial(gated_store, gates=gates),
        "split": "load_first",
    }
    async with (
        serving(root, **{**parts, **settings}) as daemon,
        daemon.connect("a") as client,
        daemon.connect("a", admin=True) as boss,
    ):
        for name in "cde":
            await boss.create(name=name)
        try:
            yield Setup(daemon, gates, client, boss)
        finally:
            gates.open()


async def cancelled(setup: Setup, stream: AsyncStream) -> Callable[[], bool]:
    task = asyncio.create_task(stream.cancel())
    await asyncio.sleep(0)
    await setup.client.ping()  # after its reply the daemon has the cancel, too
    return task.done


async def gone(setup: Setup, stream: AsyncStream) -> Callable[[], bool]:
    others = active(setup.daemon.service.stats()) - 1
    await setup.client.close()
    await asyncio.sleep(0.05)  # so the daemon has noticed
    return lambda: active(setup.daemon.service.stats()) == others


@pytest.mark.parametrize("end", [cancelled, gone])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.bring.__name__)
@on_a_loop
async def test_a_call_that_ends_early_ends_within_a_step_and_frees_what_it_had(
    tmp_path: Path, scene: Scene, end: Callable[[Setup, AsyncStream], Awaitable[Callable[[], bool]]]
) -> None:
    async with opened(tmp_path, **scene.settings) as setup:
        stream = await scene.bring(setup)
        gates, stats = setup.gates, setup.daemon.service.stats
        before = gates.step.came
        ended = await end(setup, stream)
        if scene.steps:
            gates.step.let(scene.steps)
        if scene.loads:
            gates.load.let(scene.loads)
        await until(ended, f"it has not ended: {stats()}", 5.0)
        assert gates.step.came == before, "another step was begun for it"
        assert active(stats()) == scene.others
        if scene.others:
            gates.open()
            await setup.boss.close()
        await nothing_is_held(setup)


async def nothing_is_held(setup: Setup) -> None:
    """A call that needs every cell must get them at once, even if the disk still hangs; then contexts must go on as if
    nothing had happened."""
    setup.gates.step.let()
    setup.gates.load.let()
    engine, stats = setup.daemon.thread.engine, setup.daemon.service.stats
    assert isinstance(engine, GatedEngine)
    await until(lambda: not active(stats()), f"a call is left over: {stats()}")
    await until(lambda: engine.n_samplers == 0, "a sampler is left over")
    async with setup.daemon.connect("a") as client:
        stream = client.generate("e", [Message("user", "e" * (CELLS - 100))], max_tokens=ENDLESS)
        await asyncio.wait_for(anext(stream), 5.0)
        await stream.cancel()
        setup.gates.open()
        await setup.daemon.until_idle()
        book = book_of("c", setup.daemon.store.spans((await client.show("c")).info.id))
        question = [Message("user", "and now?")]
        expected = Oracle(CELLS).generate(book, question, None, Generation(5))
        assert expected is not None and await ask(client, "c", "and now?", n=5) == expected.text


@on_a_loop
async def test_what_is_being_committed_is_done_whoever_cancels(tmp_path: Path) -> None:
    async with opened(tmp_path) as setup:
        setup.gates.commit.shut()
        stream = setup.client.generate("c", HELLO, max_tokens=3)
        await setup.gates.commit.somebody_waits()
        await cancelled(setup, stream)
        setup.gates.commit.let()
        done = await asyncio.wait_for(stream.done(), 5.0)
        assert done.n_generated == 3 and stream.text == answer_to("hello", n=3)
        setup.gates.commit.shut()
        stream = setup.client.generate("c", HELLO, max_tokens=3)
        await setup.gates.commit.somebody_waits()
        await gone(setup, stream)
        setup.gates.commit.let()
        await nothing_is_held(setup)
        assert (await setup.boss.show("c")).info.n_messages == 6


@on_a_loop
async def test_calls_that_are_cancelled_behind_a_long_one_do_not_pile_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as setup:
        await behind_another_of_its_context(setup)
        tasks = len(asyncio.all_tasks())
        for _ in range(100):
            stream = await setup.begin()
            await stream.cancel()
            with pytest.raises(Cancelled):
                await stream.done()
        assert len(asyncio.all_tasks()) <= tasks + 1
        setup.gates.open()


@on_a_loop
async def test_a_deadline_holds_behind_a_long_call_of_the_same_context(tmp_path: Path) -> None:
    async with opened(tmp_path) as setup:
        await behind_another_of_its_context(setup)  # its step does not end
        stream = await setup.begin(terms=Terms(deadline_s=0.05))
        with pytest.raises(Expired) as told:
            await asyncio.wait_for(stream.done(), 5.0)
        assert told.value.n_generated == 0
        stream = await setup.begin(terms=Terms(deadline_s=1000.0))
        await stream.cancel()
        setup.gates.open()
