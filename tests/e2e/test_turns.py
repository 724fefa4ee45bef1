"""More answers at once than may run: they are paused by turns, and each is the same as without pauses."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmaas.calls import Priority, Sampling, Terms
from llmaas.clock import RealClock
from llmaas.engine.base import BatchItem, Row
from llmaas.engine.fake import FakeEngine
from llmaas.errors import Expired
from llmaas.policies.duty import ThermalReading
from tests.e2e.test_many_clients import work
from tests.support.daemon import serving
from tests.support.loop import on_a_loop


class SlowEngine(FakeEngine):
    """Takes a millisecond for each step and a tenth of one for each token of it."""

    def __init__(self, n_cells: int, n_seqs: int, end_rate: float) -> None:
        super().__init__(n_cells, n_seqs, end_rate=end_rate, step_time=lambda n: 1e-3 + 1e-4 * n)


@on_a_loop
async def test_answers_that_are_interrupted_say_what_they_would_have_said(tmp_path: Path) -> None:
    async with serving(tmp_path, end_rate=0.02, pool_bytes=400_000, quantum=3, max_running=2) as daemon:
        apps = [daemon.app(f"app-{i}", seed=i) for i in range(6)]
        until = time.monotonic() + 2.0
        with ThreadPoolExecutor(6) as threads:
            done = [asyncio.wrap_future(threads.submit(work, daemon, app, until)) for app in apps]
            await asyncio.wait(done)
        for future in done:
            future.result()
        counts = daemon.service.stats()["counts"]
        assert isinstance(counts, dict) and counts["pauses"] > 20


@on_a_loop
async def test_a_drawn_answer_keeps_its_dice_when_it_is_interrupted(tmp_path: Path) -> None:
    dice = Sampling(temperature=1.0, seed=7)

    async def answers(root: Path, names: str, **settings: int) -> dict[str, str]:
        async with serving(root, **settings) as daemon, daemon.connect("a") as client:
            for name in names:
                await client.create(name=name)
            streams = {n: client.generate(n, prompt=n * 300, max_tokens=60, sampling=dice) for n in names}
            for stream in streams.values():
                await stream.done()
            counts = daemon.service.stats()["counts"]
            assert isinstance(counts, dict) and bool(counts["pauses"]) == (len(names) > 1)
            return {name: stream.text for name, stream in streams.items()}

    alone = {name: (await answers(tmp_path / name, name))[name] for name in "abcdef"}
    assert await answers(tmp_path / "all", "abcdef", quantum=5) == alone


@on_a_loop
async def test_the_urgent_answer_first_and_a_deadline_ends_what_is_late(tmp_path: Path) -> None:
    async with serving(tmp_path, engine=SlowEngine, max_running=2) as daemon, daemon.connect("a") as client:
        for name in "abcu":
            await client.create(name=name)
        background = Terms(Priority.BACKGROUND)
        slow = [client.generate(n, prompt=n * 100, max_tokens=400, terms=background) for n in "abc"]
        await asyncio.sleep(0.2)
        urgent = client.generate("u", prompt="u" * 10, max_tokens=10, terms=Terms(0))
        done = await urgent.done()
        assert done.ttft_ms < 100
        late = client.generate("u", prompt="!", max_tokens=400, terms=Terms(9, deadline_s=0.1))
        with pytest.raises(Expired):
            await late.done()
        await slow[0].prioritize(0)
        await slow[0].done()
        others = [asyncio.ensure_future(stream.done()) for stream in slow[1:]]
        assert not all(other.done() for other in others)
        for other in others:
            assert (await other).n_generated == 400


@on_a_loop
async def test_a_limit_set_by_the_operator_holds_for_an_app(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("a", admin=True) as client:
        info = await client.create(name="x")
        assert (await client.limit(info.app, 100.0))["apps"] == {info.app: 100.0}
        done = await client.generate("x", prompt="x", max_tokens=100).done()
        assert done.decode_tps == pytest.approx(100.0, rel=0.1)
        await client.limit(info.app)
        done = await client.generate("x", prompt="x", max_tokens=100).done()
        assert done.decode_tps > 200


class SkippingClock(RealClock):
    """The machine's clock, which a test may put forward."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def now(self) -> float:
        return super().now() + self.skipped


IN_A_ROW = 64
"""Steps, twice as many as the engine takes at most before it rests."""


class WatchedEngine(SlowEngine):
    """Notes when each step began."""

    def __init__(self, n_cells: int, n_seqs: int, end_rate: float) -> None:
        super().__init__(n_cells, n_seqs, end_rate)
        self.began: list[float] = []

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        self.began.append(time.monotonic())
        return super().step(items, adapter, draw_s=draw_s)


@on_a_loop
async def test_a_smaller_duty_makes_the_daemon_compute_less(tmp_path: Path) -> None:
    """By the median of what some steps in a row take: what others do on the machine delays some of them."""
    clock = SkippingClock()
    async with serving(tmp_path, engine=WatchedEngine, clock=clock) as daemon, daemon.connect("a") as client:
        engine = daemon.thread.engine
        assert isinstance(engine, WatchedEngine)

        async def steps_per_second() -> float:
            engine.began.clear()
            done = await client.generate("x", prompt="x", max_tokens=200).done()
            assert done.n_generated == 200
            ends = engine.began[IN_A_ROW:]
            return IN_A_ROW / statistics.median(b - a for a, b in zip(engine.began, ends, strict=False))

        await client.create(name="x")
        cool = await steps_per_second()
        for _ in range(3):  # a step down each, from all of the time to 0.4 of it
            daemon.service.on_thermal_reading(ThermalReading(temperature=97.5, limit=100.0))
            clock.skipped += 2.0
        assert 0.2 * cool < await steps_per_second() < 0.55 * cool
