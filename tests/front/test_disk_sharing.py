"""One quota of bytes on disk over the stores of several models, whose processes are real."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmaas.api.async_client import AsyncClient
from llmaas.cli.serve_several import stored_bytes
from tests.support.daemon import ask
from tests.support.front_house import SOON, FrontHouse, front_house, put_away, timeout
from tests.support.loop import on_a_loop

TOTAL = 1 << 20
LONG = "word " * 60


def shares(house: FrontHouse) -> dict[str, int | None]:
    return {name: process.disk_share for name, process in house.front.processes.items()}


async def quota_of(client: AsyncClient) -> int:
    stats = await client.stats()
    return int(stats["disk_bytes"]["quota"])


@on_a_loop
async def test_what_one_that_is_away_holds_is_kept_and_the_rest_is_the_others(tmp_path: Path) -> None:
    async with front_house(tmp_path, disk_bytes=TOTAL, disk_most=TOTAL) as house:
        first = await house.connect("a")
        context = await first.context("c")
        kept = await ask(first, context.id, LONG)
        assert shares(house) == {"a": TOTAL, "b": None} and await quota_of(first) == TOTAL
        await put_away(house, "a")
        held = house.front.processes["a"].disk_used
        assert held > 0, "its chunks are on disk, those too that were written at its end"
        second = await house.connect("b")
        async with timeout(SOON):
            while await quota_of(second) != TOTAL - held:
                await asyncio.sleep(0.02)
        assert [message.content for message in (await first.show(context.id)).messages][:2] == [LONG, kept]
        async with timeout(SOON):
            while await quota_of(first) + await quota_of(second) > TOTAL:
                await asyncio.sleep(0.02)


@on_a_loop
async def test_a_store_that_was_full_before_the_front_started_counts(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:
        client = await house.connect("b")
        contexts = [await client.context(f"c{i}") for i in range(3)]
        for context in contexts:
            await ask(client, context.id, LONG)
    held = stored_bytes(tmp_path / "b")
    assert held > 0
    async with front_house(tmp_path, disk_bytes=held + 4096, disk_most=TOTAL) as house:
        other = await house.connect("a")
        async with timeout(SOON):
            while await quota_of(other) != 4096:
                await asyncio.sleep(0.02)
    async with front_house(tmp_path, disk_bytes=held // 2, disk_most=TOTAL) as house:  # it holds more than all may
        client = await house.connect("b")
        assert len(await client.contexts()) == 3, "what was acknowledged stays"
        async with timeout(SOON):
            while (await client.stats())["disk_bytes"]["chunks"] > held // 2:
                await asyncio.sleep(0.02)
        assert await ask(client, contexts[0].id)


@on_a_loop
async def test_without_a_common_quota_each_has_its_own(tmp_path: Path) -> None:
    async with front_house(tmp_path, disk_most=TOTAL) as house:
        both = [await house.connect(name) for name in "ab"]
        found = [(await client.stats())["disk_bytes"]["quota"] for client in both]
        assert found == ["none", "none"] and shares(house) == {"a": None, "b": None}
