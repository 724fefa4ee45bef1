"""The service on the fake engine, whose tokens depend on every byte of KV: one wrong chunk changes an answer."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import CallSpec, Generation, Turn
from llmaas.kvchunks.store.store import Files, Store
from llmaas.records import Message, Precision
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

TEXT = "All happy families are alike; every unhappy family is unhappy in its own way. "


@on_a_loop
async def test_contexts_that_swap_in_and_out_say_what_they_would_have_said_alone(tmp_path: Path) -> None:
    async def conversation(h: House, names: list[str]) -> dict[str, list[str]]:
        said: dict[str, list[str]] = {name: [] for name in names}
        for name in names:
            await h.service.create(APP, name=name, system=None)
        for turn in range(4):
            for name in "abacdcbd":  # LRU never hits in a plain circle
                said[name].append((await h.say(name, f"{name} {turn} {TEXT}", 12))[0])
        return said

    names = ["a", "b", "c", "d"]
    async with house(tmp_path / "small", engine={"n_cells": 1100}, pool_bytes=150_000) as h:
        swapped = await conversation(h, names)
        counts = h.service.stats()["counts"]
        assert isinstance(counts, dict)
        assert counts["tokens_from_pool"] and counts["tokens_from_disk"]
    async with house(tmp_path / "large", engine={"n_cells": 8192}) as h:
        assert swapped == await conversation(h, names)


@pytest.mark.parametrize("precision", [Precision(16, 16), Precision(4, 4)])
@on_a_loop
async def test_a_conversation_goes_on_after_a_restart_from_disk(tmp_path: Path, precision: Precision) -> None:
    async with house(tmp_path / "a", bits=precision) as h:
        await h.service.create(APP, name="x", system="s")
        await h.say("x", TEXT * 3, 20)
        before = h.tokens("x")
    async with house(tmp_path / "a", bits=precision) as h:
        assert h.tokens("x") == before
        answer, done = await h.say("x", "and then?", 20)
        assert done.switch.disk == len(before) - 1, "all but the token that was drawn last, which is not computed yet"
        assert done.switch.recomputed == 0
    async with house(tmp_path / "b", bits=precision) as h:
        await h.service.create(APP, name="x", system="s")
        await h.say("x", TEXT * 3, 20)
        assert (await h.say("x", "and then?", 20))[0] == answer


@on_a_loop
async def test_the_hello_tells_what_the_models_makers_suggest(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"sampling": {"temperature": 1.0, "top_k": 64}}) as h:
        hello = h.service.hello()
        assert (hello["model"], hello["sampling"]) == ("fake", {"temperature": 1.0, "top_k": 64})


class FullDisk(Files):
    """A disk that has no room while ``full``."""

    full = False

    def pwrite(self, *args: Any) -> Any:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwrite(*args)


@on_a_loop
async def test_a_full_disk_keeps_chunks_in_memory_and_the_service_goes_on(tmp_path: Path) -> None:
    files = FullDisk()
    async with house(tmp_path, store=Store(tmp_path, files=files), engine={"n_cells": 600}, pool_bytes=80_000) as h:
        for name in "abc":
            await h.service.create(APP, name=name, system=None)
        files.full = True
        said = [(await h.say(name, TEXT * 2, 6))[0] for name in "abc"]
        said += [(await h.say(name, "more", 6))[0] for name in "abc"]
        files.full = False
        said += [(await h.say(name, "still", 6))[0] for name in "abc"]
        await h.service.wait_idle()
    async with house(tmp_path / "calm", engine={"n_cells": 4000}) as h:
        for name in "abc":
            await h.service.create(APP, name=name, system=None)
        calm = [(await h.say(name, text, 6))[0] for text in (TEXT * 2, "more", "still") for name in "abc"]
    assert calm == said


@on_a_loop
async def test_a_context_comes_back_between_the_steps_of_another_that_answers(tmp_path: Path) -> None:
    def step_time(tokens: int) -> float:
        return 0.01

    async with house(tmp_path, engine={"n_cells": 2400, "step_time": step_time}) as h:
        for name in ("back", "pusher", "talker"):
            await h.service.create(APP, name=name, system=None)
        await h.say("back", "b" * 1200)
        await h.service.wait_idle()
        await h.say("pusher", "p" * 1500)
        await h.service.wait_idle()
        assert h.service.info(APP, "back").tiers[0] == 0
        pieces: list[str] = []
        _, talk = h.service.submit(
            APP,
            "talker",
            CallSpec(Turn((Message("user", "Go on."),)), Generation(500)),
            lambda p: pieces.append(p.text),
        )
        while len(pieces) < 20:
            await asyncio.sleep(0.01)
        before = len(pieces)
        _, done = await h.say("back", "and?", 1)
        assert done.switch.pool > 1000
        # Twenty chunks, four of which can be on their way at once: about one step for each four.
        assert len(pieces) - before < 20, "each load waited for sixteen steps"
        await talk
