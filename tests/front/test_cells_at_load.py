"""A model is loaded with fewer cells where others take the memory for more; the processes are real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmaas.api.async_client import AsyncClient
from tests.support.daemon import ask
from tests.support.front_house import front_house, put_away
from tests.support.loop import on_a_loop

CELLS = 1024
"""Of ``fake_model_process``; each takes a byte here, and a model 100 more."""
NBYTES = {"a": CELLS + 100, "b": CELLS + 100}
SHAPE: dict[str, Any] = {"cells": CELLS, "cell_bytes": 1, "nbytes": NBYTES}
LONG = "word " * 130


def limit_of(client: AsyncClient) -> int:
    return int(client.server["context_limit"])


@on_a_loop
async def test_the_second_one_gets_what_the_first_has_left(tmp_path: Path) -> None:
    async with front_house(tmp_path, budget=2048, least_cells=512, **SHAPE) as house:
        first = await house.connect("a")
        second = await house.connect("b")
        await house.until_there("a", "b")
        assert (limit_of(first), limit_of(second)) == (CELLS, 768), "nobody had to leave"
        assert await ask(second, (await second.context("c")).id)
        await put_away(house, "a")
        await put_away(house, "b")
        assert limit_of(await house.connect("b")) == CELLS, "alone it has all"


@on_a_loop
async def test_where_the_least_does_not_fit_either_another_leaves(tmp_path: Path) -> None:
    async with front_house(tmp_path, budget=1500, least_cells=512, **SHAPE) as house:
        first = await house.connect("a")
        await ask(first, (await first.context("c")).id)
        second = await house.connect("b")
        await house.until_there("b")
        assert limit_of(second) == CELLS
    async with front_house(tmp_path, budget=800, least_cells=512, **SHAPE) as house:
        assert limit_of(await house.connect("a")) == 512, "alone it has what the budget has"


@on_a_loop
async def test_without_least_cells_it_is_all_or_none(tmp_path: Path) -> None:
    async with front_house(tmp_path, budget=2048, **SHAPE) as house:
        await house.connect("a")
        assert limit_of(await house.connect("b")) == CELLS
        await house.until_there("b")


@on_a_loop
async def test_a_long_context_goes_on_though_there_is_no_room_for_its_cells(tmp_path: Path) -> None:
    async with front_house(tmp_path, **SHAPE) as house:
        client = await house.connect("b")
        context = await client.context("c")
        await ask(client, context.id, LONG)
        n_tokens = (await client.show(context.id)).info.n_tokens
        assert n_tokens > 512
    async with front_house(tmp_path, budget=1800, least_cells=512, **SHAPE) as house:
        await house.connect("a")
        client = await house.connect("b")
        assert limit_of(client) >= n_tokens + 256 and await ask(client, context.id)
        assert house.front.processes["b"].needed_cells == limit_of(client)
        await put_away(house, "b")
        again = await house.connect("b")
        await house.until_there("b")  # the front knows by now what it needs, so the other has left
        assert limit_of(again) == CELLS
