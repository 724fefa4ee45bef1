"""Embeddings beside calls: who waits for whom, what is refused, what is freed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import DEFAULT_TERMS, CallSpec, Generation, Turn
from llmaas.engine.base import BatchItem, EmbeddingFacts, Row
from llmaas.engine.fake import FakeEngine
from llmaas.engine.fake.embedding import FACTS
from llmaas.errors import BadRequest, Busy, ContextTooLong, ShuttingDown
from llmaas.kv_arrays import F32
from llmaas.records import AppId, Message
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

OTHER = AppId("1000/other")
LONG = "word " * (FACTS.limit // 5 - 1)


class LoggedEngine(FakeEngine):
    """Writes down what it computes: steps, and slices of texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(step_time=lambda n: 0.002, **options)
        self.done: list[str] = []

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        self.done.append("step")
        return super().step(items, adapter, draw_s=draw_s)

    def embed(self, pos: int, tokens: Sequence[int]) -> F32:
        self.done.append(f"text {tokens[0] if pos else 'begin'}")
        return super().embed(pos, tokens)

    def end_embedding(self) -> None:
        self.done.append("end")
        super().end_embedding()


class NoEmbeddings(FakeEngine):
    @property
    def embedding(self) -> EmbeddingFacts | None:
        return None


def log_of(inside: House) -> list[str]:
    engine = inside.thread.engine
    assert isinstance(engine, LoggedEngine)
    return engine.done


@on_a_loop
async def test_each_text_has_its_vector_and_its_number_of_tokens(tmp_path: Path) -> None:
    async with house(tmp_path) as inside:
        embed = inside.service.embeddings.embed
        one = await embed(APP, ["hello"])
        both = await embed(OTHER, ["hello", "hello there, all of you"])
        assert both.vectors[0] == one.vectors[0] != both.vectors[1]
        assert (one.dimensions, one.n_tokens) == (FACTS.width, (6,)) and both.n_tokens[1] > 6
        assert sum(x * x for x in one.vectors[0]) == pytest.approx(1, abs=1e-5)


@on_a_loop
async def test_a_call_waits_for_one_slice_of_another_apps_text_at_most(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=LoggedEngine, prefill_slice=16) as inside:
        await inside.service.create(OTHER, name="c", system=None)
        texts = asyncio.ensure_future(inside.service.embeddings.embed(APP, [LONG] * 20))
        done = log_of(inside)
        while len(done) < 3:
            await asyncio.sleep(0.001)
        begin = len(done)
        first = asyncio.get_running_loop().create_future()
        spec = CallSpec(Turn((Message("user", "x" * 300),)), Generation(1), DEFAULT_TERMS)
        _, reply = inside.service.submit(OTHER, "c", spec, lambda piece: first.done() or first.set_result(len(done)))
        end = await first
        during = done[begin:end]
        n_steps = during.count("step")
        assert n_steps > 5 and not texts.done()
        assert len(during) - n_steps <= n_steps + 2, "never more than one slice between two steps"
        assert all("step" in pair for pair in pairwise(during[2:]))
        await reply
        await texts


@on_a_loop
async def test_apps_texts_are_computed_in_turn(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=LoggedEngine) as inside:
        ended: list[str] = []

        async def embed(app: AppId, n: int) -> None:
            for _ in range(n):
                await inside.service.embeddings.embed(app, [LONG])
                ended.append(app)

        many = [asyncio.ensure_future(embed(APP, 1)) for _ in range(12)]
        await asyncio.sleep(0.02)
        await embed(OTHER, 1)
        assert ended.index(OTHER) <= 6
        await asyncio.gather(*many)


@on_a_loop
async def test_a_request_that_is_cancelled_leaves_the_engine_to_the_next(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=LoggedEngine) as inside:
        embed = inside.service.embeddings.embed
        wanted = await embed(APP, ["hello"])
        tasks = [asyncio.ensure_future(embed(APP, [LONG] * 50)) for _ in range(3)]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        n_done = len(log_of(inside))
        assert (await embed(OTHER, ["hello"])).packed == wanted.packed
        assert len(log_of(inside)) <= n_done + 3
        assert inside.service.used(APP).requests == 0


@on_a_loop
async def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with house(tmp_path) as inside:
        embed = inside.service.embeddings.embed
        with pytest.raises(ContextTooLong, match=f"text 1 has more than {FACTS.limit}"):
            await embed(APP, ["short", "x" * 600])
        cut = await embed(APP, ["x" * 600], truncate=True)
        assert cut.n_tokens == (FACTS.limit,) and cut.packed == (await embed(APP, ["x" * (FACTS.limit - 1)])).packed
    async with house(tmp_path / "none", engine_type=NoEmbeddings) as inside:
        assert inside.service.hello()["embedding_limit"] == 0
        with pytest.raises(BadRequest, match="no embeddings"):
            await inside.service.embeddings.embed(APP, ["x"])


@on_a_loop
async def test_requests_for_embeddings_count_among_an_apps_calls(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=LoggedEngine, queue_limit=2) as inside:
        await inside.service.create(APP, name="c", system=None)
        tasks = [asyncio.ensure_future(inside.service.embeddings.embed(APP, [LONG])) for _ in range(2)]
        await asyncio.sleep(0.005)
        assert inside.service.used(APP).requests == 2
        with pytest.raises(Busy):
            await inside.service.embeddings.embed(APP, ["x"])
        with pytest.raises(Busy):
            await inside.say("c", "hello")
        await inside.service.embeddings.embed(OTHER, ["x"])
        await asyncio.gather(*tasks)
        await inside.say("c", "hello")


@on_a_loop
async def test_memory_is_freed_when_nobody_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.service.embeddings.IDLE_S", 0.02)
    async with house(tmp_path, engine_type=LoggedEngine) as inside:
        embed, done = inside.service.embeddings.embed, log_of(inside)
        await embed(APP, [LONG])
        assert "end" not in done
        inside.service.embeddings.free()
        await asyncio.sleep(0.1)
        assert done.count("end") == 1
        await embed(APP, ["again"])
        await asyncio.sleep(0.1)
        assert done.count("end") == 2


@on_a_loop
async def test_a_service_that_stops_ends_the_texts_that_are_computed(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=LoggedEngine) as inside:
        task = asyncio.ensure_future(inside.service.embeddings.embed(APP, [LONG] * 100))
        await asyncio.sleep(0.02)
        await inside.service.stop()
        with pytest.raises(ShuttingDown):
            await asyncio.wait_for(task, 5)
        with pytest.raises(ShuttingDown):
            await inside.service.embeddings.embed(APP, ["x"])
