"""One budget of POOL bytes over several models, whose processes are real."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmaas.api.async_client import AsyncClient
from tests.support.daemon import ask
from tests.support.front_house import SOON, FrontHouse, front_house, put_away, timeout
from tests.support.loop import on_a_loop

MOST = 1 << 20
"""What ``fake_model_process`` configures for each model's POOL."""


def shares(house: FrontHouse) -> dict[str, int | None]:
    return {name: process.pool_share for name, process in house.front.processes.items()}


async def budget_of(client: AsyncClient) -> int:
    stats = await client.stats()
    return int(stats["pool_bytes"]["budget"])


@on_a_loop
async def test_who_is_alone_has_all_and_who_comes_gets_a_share(tmp_path: Path) -> None:
    async with front_house(tmp_path, pool_bytes=MOST, pool_most=MOST) as house:
        first = await house.connect("a")
        assert await ask(first, (await first.context("c")).id)
        assert shares(house) == {"a": MOST, "b": None} and await budget_of(first) == MOST
        second = await house.connect("b")
        assert await ask(second, (await second.context("c")).id)
        async with timeout(SOON):
            while await budget_of(first) + await budget_of(second) > MOST:
                await asyncio.sleep(0.02)
        given = shares(house)
        assert given["a"] is not None and given["b"] is not None and given["a"] + given["b"] <= MOST
        assert min(given["a"], given["b"]) >= MOST // 16
        await put_away(house, "a")
        async with timeout(SOON):
            while await budget_of(second) < MOST - MOST // 16:  # less is not worth telling
                await asyncio.sleep(0.02)
        again = await house.connect("a")
        assert len(await again.contexts()) == 1
        async with timeout(SOON):
            while await budget_of(again) + await budget_of(second) > MOST:
                await asyncio.sleep(0.02)


@on_a_loop
async def test_without_a_common_budget_each_has_its_own(tmp_path: Path) -> None:
    async with front_house(tmp_path, pool_most=MOST) as house:
        both = [await house.connect(name) for name in "ab"]
        assert [await budget_of(client) for client in both] == [MOST, MOST]
        assert shares(house) == {"a": None, "b": None}


@on_a_loop
async def test_the_common_pool_is_set_aside_of_what_models_may_take(tmp_path: Path) -> None:
    nbytes = {"a": MOST + 600, "b": MOST + 600}
    async with front_house(tmp_path, budget=MOST + 1000, pool_bytes=MOST, pool_most=MOST, nbytes=nbytes) as house:
        await house.connect("a")
        await house.until_there("a")
        await house.connect("b")
        await house.until_there("b")
