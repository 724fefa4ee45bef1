"""Contexts of models whose sequences cannot be cut come back from whole states, from wherever these are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import CallSpec, Done, Generation, Sampling, Terms, Turn
from llmaas.errors import Cancelled
from llmaas.records import Message, RequestId
from tests.support.damaged_store import copy_store, flip
from tests.support.loop import on_a_loop
from tests.support.recurrent_models import RECURRENT
from tests.support.service_house import APP, House, house

CELLS = 512
PAYLOADS = ".kv"


@pytest.fixture(params=["fake", "lfm2", "mamba"])
def at_home(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Opens a house on a folder."""
    if request.param == "fake":
        options: dict[str, Any] = {"engine": {"n_cells": CELLS, "recurrent": True}}
    else:
        from llmaas.engine.llama.engine import LlamaEngine

        path = RECURRENT[request.param](tmp_path / "m.gguf")
        options = {
            "engine_type": lambda n_cells, n_seqs: LlamaEngine(path, n_cells=n_cells, n_seqs=n_seqs, n_threads=1),
            "engine": {"n_cells": CELLS},
        }
    return lambda root, **more: house(root, **options, **more)


async def say(h: House, name: str, prompt: str, n: int = 12) -> tuple[str, Done]:
    generation = Generation(n, sampling=Sampling(temperature=0.0))
    return await h.call(name, Turn((Message("user", prompt),)), generation)


async def push_out(h: House) -> None:
    """Another context takes all the cells."""
    await h.service.wait_idle()
    await h.service.create(APP, name="wide", system=None)
    await h.call("wide", Turn(prompt="b" * (CELLS - 8)), None)
    await h.service.wait_idle()
    await h.service.delete(APP, "wide")


async def begun(h: House) -> str:
    """Make the context "x": the answer to its first message."""
    await h.service.create(APP, name="x", system=None)
    return (await say(h, "x", "one"))[0]


async def undisturbed(at_home: Callable[..., Any], root: Path) -> list[str]:
    async with at_home(root) as h:
        return [await begun(h), *[(await say(h, "x", text))[0] for text in ("two", "three")]]


@on_a_loop
async def test_it_comes_back_from_the_pool_and_answers_as_if_nothing_had_been(
    tmp_path: Path, at_home: Callable[..., Any]
) -> None:
    right = await undisturbed(at_home, tmp_path / "a")
    async with at_home(tmp_path / "b") as h:
        found = [await begun(h)]
        for text in ("two", "three"):
            await push_out(h)
            answer, done = await say(h, "x", text)
            found.append(answer)
            assert done.switch.pool > 0 and done.switch.recomputed == done.switch.cells == 0
    assert found == right


@on_a_loop
async def test_it_comes_back_from_disk_after_a_kill(tmp_path: Path, at_home: Callable[..., Any]) -> None:
    right = await undisturbed(at_home, tmp_path / "a")
    root = tmp_path / "b"
    async with at_home(root) as h:
        found = [await begun(h)]
        await h.service.wait_idle()
        killed = copy_store(root, tmp_path / "killed")  # what a process that is killed now leaves behind
        for i, text in enumerate(("two", "three")):
            async with at_home(killed) as again:
                answer, done = await say(again, "x", text)
                found.append(answer)
                assert done.switch.disk > 0 and done.switch.recomputed == 0
                await again.service.wait_idle()
                killed = copy_store(killed, tmp_path / f"killed {i}")
    assert found == right


@on_a_loop
async def test_a_fork_and_an_undo_go_on_from_the_ends_of_earlier_turns(
    tmp_path: Path, at_home: Callable[..., Any]
) -> None:
    async with at_home(tmp_path / "a") as h:
        await begun(h)
        second, _ = await say(h, "x", "two")
        await h.service.wait_idle()
        await h.service.fork(APP, "x", name="whole")
        await push_out(h)
        answer, done = await say(h, "whole", "three")
        assert done.switch.pool > 0 and done.switch.recomputed == 0
        third, _ = await say(h, "x", "three")
        assert answer == third
        for name in ("early", "x"):  # both go back to the end of the first turn
            if name == "early":
                await h.service.fork(APP, "x", name=name, n_messages=2)
            else:
                await h.service.truncate(APP, "x", n_tokens=None, n_messages=2)
            await push_out(h)
            answer, done = await say(h, name, "two")
            assert done.switch.pool > 0 and done.switch.recomputed <= 8
            assert answer == second
            await h.service.wait_idle()


@on_a_loop
async def test_a_cancelled_call_costs_the_context_nothing(tmp_path: Path, at_home: Callable[..., Any]) -> None:
    async with at_home(tmp_path / "a") as h:
        await begun(h)
        await h.service.fork(APP, "x", name="y")
        right, _ = await say(h, "y", "two")
        await h.service.wait_idle()
        await push_out(h)
        before = len(h.tokens("x"))
        ids: list[RequestId] = []
        for at_once in (True, False):
            spec = CallSpec(Turn(prompt="and on"), Generation(200), Terms())
            request, reply = h.service.submit(APP, "x", spec, lambda piece: h.service.cancel(ids[-1]))
            ids.append(request)
            if at_once:
                h.service.cancel(request)
            with pytest.raises(Cancelled):
                await reply
        assert len(h.tokens("x")) > before  # it keeps what was generated
        await h.service.truncate(APP, "x", n_tokens=before, n_messages=None)
        answer, done = await say(h, "x", "two")
        assert answer == right
        assert done.switch.recomputed <= 8


@on_a_loop
async def test_a_damaged_state_is_a_miss_that_heals(tmp_path: Path, at_home: Callable[..., Any]) -> None:
    right = await undisturbed(at_home, tmp_path / "a")
    root = tmp_path / "b"
    async with at_home(root) as h:
        await begun(h)
    (file,) = [path for path in root.rglob("*") if path.is_file() and path.suffix == PAYLOADS]
    flip(file, 8 * (file.stat().st_size // 2))
    async with at_home(root) as h:
        answer, done = await say(h, "x", "two")
        assert answer == right[1]
        assert done.switch.disk == 0 and done.switch.recomputed > 0
    async with at_home(root) as h:
        answer, done = await say(h, "x", "three")
        assert answer == right[2]
        assert done.switch.disk > 0 and done.switch.recomputed == 0


@on_a_loop
async def test_a_state_that_is_gone_is_a_miss(tmp_path: Path, at_home: Callable[..., Any]) -> None:
    root = tmp_path / "b"
    async with at_home(root, disk_bytes=0) as h:
        await begun(h)
    async with at_home(root) as h:
        _, done = await say(h, "x", "two")
        assert done.switch.disk == done.switch.pool == 0
        assert done.n_generated == 12


@on_a_loop
async def test_after_a_start_it_is_back_in_cells_before_anybody_asks(
    tmp_path: Path, at_home: Callable[..., Any]
) -> None:
    async with at_home(tmp_path / "a") as h:
        await begun(h)
    async with at_home(tmp_path / "a", warm_start=True) as h:
        await h.service.wait_idle()
        info = h.service.info(APP, "x")
        assert info.tiers[0] >= info.n_tokens - 1
        _, done = await say(h, "x", "two")
        assert done.switch.cells > 0 and done.switch.disk == done.switch.pool == done.switch.recomputed == 0


@on_a_loop
async def test_contexts_that_answer_together_and_take_turns_in_the_cells_say_what_they_say_alone(
    tmp_path: Path, at_home: Callable[..., Any]
) -> None:
    names = [f"x{i}" for i in range(4)]
    async with at_home(tmp_path / "a", max_running=2, quantum=4) as h:
        for name in names:
            await h.service.create(APP, name=name, system=None)
        for text in ("one", "two"):
            await asyncio.gather(*(say(h, name, f"{text} {name} " * 8, 30) for name in names))
        assert {len(h.tokens(name)) for name in names} != {0}
        for name in names:
            assert (await h.shown(name)).info.n_messages == 4
            await push_out(h)
            _, done = await say(h, name, "three", 4)
            assert done.switch.pool + done.switch.disk > 0 and done.switch.recomputed == 0
