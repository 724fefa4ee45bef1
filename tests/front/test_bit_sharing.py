"""One budget of bits over the chunks of several models, whose processes are real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.daemon import ask
from tests.support.front_house import SOON, front_house, put_away, timeout
from tests.support.loop import on_a_loop


@on_a_loop
async def test_models_say_what_they_would_do_with_bits_and_are_told_how_many_they_have(tmp_path: Path) -> None:
    async with front_house(tmp_path, bits=4.5) as house:
        first, second = await house.connect("a"), await house.connect("b")
        a, b = (house.front.processes[name] for name in "ab")
        for client in (first, second):
            await ask(client, (await client.context("c")).id, "word " * 60)
        async with timeout(SOON):
            while not (a.curve and a.curve.values and b.curve and b.curve.values):
                await asyncio.sleep(0.02)
        assert a.bit_share is not None and b.bit_share is not None
        total = a.curve.values + b.curve.values
        mean = (a.bit_share * a.curve.values + b.bit_share * b.curve.values) / total
        assert mean == pytest.approx(4.5, abs=0.3), "chunks that are alike"
        await put_away(house, "a")
        assert a.curve is None, "one that is away shares nothing"
        assert await first.contexts(), "it comes back"


async def coded_bytes(root: Path, bits: float) -> int:
    """What three contexts take in the POOL when all their chunks are there. On DISK is only what is worth its bytes,
    and that depends on how quickly this machine computes."""
    root.mkdir()
    async with front_house(root, "a", bits=bits) as house:
        client = await house.connect("a")
        for i in range(3):
            await ask(client, (await client.context(f"c{i}")).id, f"{i} " + "word " * 60)
        used, same = -1, 0
        async with timeout(SOON):
            while same < 10:
                before, used = used, int((await client.stats())["pool_bytes"]["used"])
                same = same + 1 if used == before > 0 else 0
                await asyncio.sleep(0.05)
        return used


@on_a_loop
async def test_a_model_codes_with_the_bits_that_it_was_told(tmp_path: Path) -> None:
    coded = [await coded_bytes(tmp_path / f"{bits:g}", bits) for bits in (2.5, 8.0)]
    assert coded[1] > 1.5 * coded[0] > 0


@on_a_loop
async def test_without_a_common_budget_nothing_is_told(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:
        client = await house.connect("a")
        await ask(client, (await client.context("c")).id)
        assert house.front.processes["a"].bit_share is None and house.front.processes["a"].curve is None
