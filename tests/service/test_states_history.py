"""Any history of a model whose sequences cannot be cut: each answer is what the context's tokens say, nothing else."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from llmaas.calls import CallSpec, Generation, Sampling, Terms, Turn
from llmaas.engine.base import BatchItem
from llmaas.engine.fake import FakeEngine
from llmaas.errors import LlmaasError
from llmaas.records import Message
from tests.support.damaged_store import copy_store
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

CELLS = 400
GREEDY = Sampling(temperature=0.0)


def right_answer(before: list[int], n: int) -> list[int]:
    """What an engine draws after these tokens that has computed nothing else."""
    engine = FakeEngine(4096, 1)
    engine.set_sampler(0, GREEDY)
    for at in range(0, len(before) - 1, 256):
        part = before[at : min(at + 256, len(before) - 1)]
        engine.step([BatchItem(0, at, part)])
    drawn, last = list[int](), before[-1]
    for i in range(n):
        (token,) = engine.step([BatchItem(0, len(before) - 1 + i, [last], 0)])
        assert token is not None
        drawn.append(token)
        last = token
    return drawn


async def one_call(h: House, name: str, rng: random.Random) -> None:
    if len(h.tokens(name)) > 150:
        await h.service.truncate(APP, name, n_tokens=rng.choice([0, 40, 70, 128]), n_messages=None)
    n = rng.choice([1, 3, 20])
    turn = Turn(prompt="ab" * rng.randrange(1, 30)) if rng.random() < 0.5 else Turn((Message("user", "hm"),))
    if rng.random() < 0.2:
        await h.call(name, turn, None)
        turn = Turn()
    await h.call(name, turn, Generation(n, sampling=GREEDY))
    tokens = h.tokens(name)
    assert tokens[-n:] == right_answer(tokens[:-n], n)


async def one_cancelled(h: House, name: str) -> None:
    spec = CallSpec(Turn(prompt="and so on"), Generation(50), Terms())
    request, reply = h.service.submit(APP, name, spec, lambda piece: None)
    await asyncio.sleep(0)
    h.service.cancel(request)
    with pytest.raises(LlmaasError):
        await reply


async def events(h: House, rng: random.Random, n: int) -> None:
    for _ in range(n):
        names = [info.name for info in h.service.contexts(APP)]
        name, pick = rng.choice(names), rng.random()
        if pick < 0.6:
            chosen = rng.sample(names, min(len(names), rng.choice([1, 1, 3])))
            await asyncio.gather(*(one_call(h, each, rng) for each in chosen))
        elif pick < 0.7:
            await one_cancelled(h, name)
        elif pick < 0.8:
            keep = rng.randrange(len(h.tokens(name)) + 1)
            await h.service.truncate(APP, name, n_tokens=keep, n_messages=None)
        elif pick < 0.87 and len(names) < 7:
            await h.service.fork(APP, name, name=f"f{rng.random()}")
        elif pick < 0.9 and len(names) > 3:
            await h.service.delete(APP, name)
        elif pick < 0.95:
            h.service.budget(pool_bytes=rng.choice([0, 3_000, 20_000]))
        else:
            await h.service.wait_idle()


@pytest.mark.parametrize("seed", range(2))
@on_a_loop
async def test_every_answer_is_what_the_tokens_say(tmp_path: Path, seed: int) -> None:
    rng, root = random.Random(seed), tmp_path / "0"
    for life in range(1, 4):
        options = {"n_cells": CELLS, "n_seqs": 4, "recurrent": True}
        choices = {"pool_bytes": 20_000, "quantum": 4, "max_running": 3, "disk_bytes": rng.choice([8_000, 1 << 30])}
        async with house(root, engine=options, **choices) as h:
            if life == 1:
                for i in range(4):
                    await h.service.create(APP, name=f"c{i}", system="You are.")
            await events(h, rng, 40)
            await h.service.wait_idle()
            root = copy_store(root, tmp_path / str(life))  # the next one goes on from what a kill would leave
