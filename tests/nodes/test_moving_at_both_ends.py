"""An answer moves over a slow link to a slow node: chunks come from the end while the beginning is computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.lib.slow_link import slow_link
from llmaas.engine.fake import FakeEngine
from llmaas.errors import NodeUnreachable
from llmaas.nodes import chunk_sender
from tests.nodes.test_moving import move, names
from tests.nodes.test_moving_answers import Asked, until_nothing_waits
from tests.support.loop import on_a_loop
from tests.support.node_house import SOON, House, node_daemon, pair, pin

WORDS = "the tide comes in and the tide goes out " * 20
TOKEN_S, CHUNK_S = 0.001, 0.07
"""What a token takes to compute, and a chunk on the way: about the same for all of them."""
CHUNK_BYTES = 9000
"""As the fake engine's are coded, about."""
RATE = 25.0


@asynccontextmanager
async def slow_phone_and_desk(root: Path) -> AsyncIterator[tuple[House, House]]:
    """With the conversation "x" on the phone, and "twin", which is alike."""
    slow = partial(FakeEngine, step_time=lambda n: TOKEN_S * n if n > 8 else 0.0)
    more: Any = {"n_cells": 8192}
    async with node_daemon(root / "phone", **more) as phone, node_daemon(root / "desk", engine=slow, **more) as desk:
        pair(phone, desk)
        with slow_link(int(desk.listener.address.rpartition(":")[2]), 8 * CHUNK_BYTES / CHUNK_S) as link:
            pin(phone.data_dir, "desk", desk.own, f"127.0.0.1:{link.port}")
            await talk(desk, "warm")  # so that it knows what computing takes
            await talk(phone, "x")
            await talk(phone, "twin")
            yield phone, desk


async def talk(house: House, context: str) -> None:
    async with house.daemon.connect("mail") as client:
        await client.create(name=context, system="Be brief.")
        for i in range(2):
            await client.ask(context, f"{i}: {WORDS}", max_tokens=9)
    await house.daemon.until_idle()


def n_recomputed(house: House) -> int:
    found: Any = house.daemon.service.stats()["counts"]
    return int(found["tokens_recomputed"])


async def begun(house: House) -> Asked:
    asked = Asked(house, rate=RATE)
    await asyncio.wait_for(asked.begun.wait(), SOON)
    return asked


@on_a_loop
async def test_chunks_come_from_the_end_while_the_beginning_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_sender, "CHUNK_BYTES", CHUNK_BYTES)
    async with slow_phone_and_desk(tmp_path) as (phone, desk):
        other = Asked(phone, "twin", None)
        await other.end()
        before = n_recomputed(desk)
        asked = await begun(phone)
        moved = await move(phone)
        assert not asked.task.done(), "it had not ended before"
        computed, n_whole = n_recomputed(desk) - before, moved.n_tokens // 64
        fronts = [reply["n_cells"] for reply in desk.cut.replies if "taken" in reply and "n_cells" in reply]
        assert sum(front > 0 for front in fronts) > 3, "it was computed while chunks came"
        assert moved.n_chunks > n_whole // 4 and computed > 64 * (n_whole // 4), "each end had its part"
        assert n_whole - 2 <= moved.n_chunks + computed // 64 <= n_whole + 3, "both together are all, and hardly more"
        await asked.end()
        assert (asked.text, asked.tokens) == (other.text, other.tokens)
        assert "x" in await names(desk) and "x" not in await names(phone)


@pytest.mark.parametrize("op", ["chunks", "grow"])
@on_a_loop
async def test_a_link_that_is_cut_while_it_is_computed_ends_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.setattr(chunk_sender, "CHUNK_BYTES", CHUNK_BYTES)
    async with slow_phone_and_desk(tmp_path) as (phone, desk):
        asked = await begun(phone)
        moving = asyncio.create_task(move(phone))
        while not any(reply.get("n_cells") for reply in desk.cut.replies):
            await asyncio.sleep(0.01)
        desk.cut.arm(op, after=False)
        with pytest.raises(NodeUnreachable):
            await moving
        await until_nothing_waits(desk)
        assert "x" in await names(phone) and "x" not in await names(desk)
        assert not desk.daemon.service.stats(apps=False)["requests"]["active"]  # type: ignore[index]
        await asked.end()


@on_a_loop
async def test_chunks_alone_leave_nothing_to_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_sender, "CHUNK_BYTES", CHUNK_BYTES)
    async with slow_phone_and_desk(tmp_path) as (phone, desk):
        before, asked = n_recomputed(desk), await begun(phone)
        moved = await move(phone, way="chunks")
        assert moved.n_chunks > 20 and n_recomputed(desk) - before < 64
        asked.stop()
        await asyncio.wait([asked.task])
        asked.task.exception()
