"""The weights of a model that nobody uses: given back after a while, brought back before they are needed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.service.idle_weights import SHORT_IDLE_S, IdleWeights
from tests.support.front_house import timeout
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house


class Source:
    """Weights that are back in a second and a half."""

    def __init__(self) -> None:
        self.brought = 0

    def start(self) -> None:
        self.brought += 1

    def left_s(self) -> float | None:
        return 0.5 if self.brought else None

    def back_s(self) -> float | None:
        return 1.5


class Loop:
    """Weights on the running loop, and what happened to them."""

    def __init__(self, keep_alive: float | None) -> None:
        self.thread = EngineThread(FakeEngine)
        self.source, self.busy = Source(), False
        self.weights = IdleWeights(self.thread, keep_alive, lambda: self.busy, self.source)

    @property
    def brought(self) -> int:
        return self.source.brought

    @property
    def n_parked(self) -> int:
        engine = self.thread.engine
        assert isinstance(engine, FakeEngine)
        return self.thread.submit(lambda: engine.n_parked).result()

    def close(self) -> None:
        self.weights.close()
        self.thread.close()


@on_a_loop
async def test_weights_are_parked_when_unused_and_back_at_the_next_use() -> None:
    loop = Loop(0.05)
    loop.weights.used()
    await asyncio.sleep(0.2)
    assert loop.weights.parked and loop.n_parked == 1 and loop.brought == 0
    loop.weights.used()
    assert not loop.weights.parked and loop.brought == 1
    assert loop.weights.stats()["back_s"] == 0.5, "they are being read"
    await asyncio.sleep(0.2)
    assert loop.n_parked == 2
    assert loop.weights.stats() == {"tier": "DISK", "parked": True, "times_parked": 2, "back_s": 1.5}
    loop.close()


@on_a_loop
async def test_uses_put_it_off_and_a_long_one_prevents_it() -> None:
    loop = Loop(0.6)
    for _ in range(15):
        loop.weights.used()
        await asyncio.sleep(0.05)
    assert loop.n_parked == 0
    loop.busy = True
    await asyncio.sleep(1.0)
    assert loop.n_parked == 0
    loop.busy = False
    async with timeout(30.0):
        while loop.n_parked != 1:
            await asyncio.sleep(0.05)
    loop.close()


@on_a_loop
async def test_without_a_time_they_stay() -> None:
    loop = Loop(None)
    loop.weights.used()
    await asyncio.sleep(0.1)
    assert not loop.weights.parked
    loop.close()


@on_a_loop
async def test_when_memory_is_short_they_go_sooner() -> None:
    running = asyncio.get_running_loop()
    before, ahead = running.time, 0.0
    running.time = lambda: before() + ahead  # type: ignore[method-assign]
    try:
        loop = Loop(None)
        loop.weights.used()
        loop.weights.on_memory(True)
        await asyncio.sleep(0.02)
        assert loop.n_parked == 0
        ahead = SHORT_IDLE_S + 1
        await asyncio.sleep(0.05)
        assert loop.n_parked == 1
        loop.weights.on_memory(False)
        loop.weights.used()
        ahead += 10 * SHORT_IDLE_S
        await asyncio.sleep(0.05)
        assert loop.n_parked == 1
        loop.close()
    finally:
        running.time = before  # type: ignore[method-assign]


@on_a_loop
async def test_a_service_parks_after_calls_and_answers_the_same(tmp_path: Path) -> None:
    source = Source()
    async with house(tmp_path, keep_alive=0.05, weights=source) as home:
        engine = home.thread.engine
        assert isinstance(engine, FakeEngine)
        await home.service.create(APP, name="c", system=None)
        first, _ = await home.say("c", "hello")
        await home.service.wait_idle()
        await asyncio.sleep(0.3)
        assert home.service.stats()["weights"] == {"tier": "DISK", "parked": True, "times_parked": 1, "back_s": 1.5}
        assert not source.brought
        home.service.hint(APP, "c")
        assert source.brought == 1
        second, _ = await home.say("c", "again")
        assert first and second and source.brought == 1
