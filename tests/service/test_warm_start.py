"""After a start the contexts that were used last are in CELLS again, before anybody asks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import Turn
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import ContextRow
from llmaas.records import AppId, ChunkKey, ContextId, Message
from llmaas.service import warm_start
from llmaas.service.live_context import LiveContext, Unread
from llmaas.service.warm_start import by_use, last_used
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

NAMES = ("first", "second", "third")


async def talk(root: Path) -> None:
    """Leave three contexts of about 250 tokens each behind."""
    async with house(root) as h:
        for name in NAMES:
            await h.service.create(APP, name=name, system=None)
            await h.say(name, f"{name} " * 30)


def in_cells(h: House) -> list[str]:
    found = [h.service.info(APP, name) for name in NAMES]
    return [info.name for info in found if info.tiers[0] == info.n_tokens]


@on_a_loop
async def test_the_contexts_used_last_are_back_in_cells_and_half_of_the_cells_stay_free(tmp_path: Path) -> None:
    await talk(tmp_path)
    async with house(tmp_path, warm_start=True) as h:
        await h.service.wait_idle()
        assert in_cells(h) == ["second", "third"]
        first = h.service.info(APP, "first")
        assert first.tiers[:2] == (0, first.n_tokens - 1), "there is room in the POOL"
        before = h.service.info(APP, "third").last_used
        _, done = await h.say("third", "And now?")
        assert done.switch.cells > 200 and not (done.switch.disk or done.switch.pool or done.switch.recomputed)
        assert before <= h.service.info(APP, "third").last_used
    async with house(tmp_path) as h:
        await h.service.wait_idle()
        assert in_cells(h) == [], "nobody wanted it"


@on_a_loop
async def test_of_an_answer_right_before_a_stop_all_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Codec.encode

    def slowly(self: Codec, *args: Any, **named: Any) -> Any:
        time.sleep(0.02)
        return encode(self, *args, **named)

    monkeypatch.setattr(Codec, "encode", slowly)
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "x " * 30)
        await h.service.stop()  # at once, when the answer's chunks have not been saved yet
    async with house(tmp_path) as h:
        assert h.service.info(APP, "x").tiers[3] == 1, "the last token that was drawn has no KV yet"


@on_a_loop
async def test_calls_that_come_with_the_start_are_not_held_up_and_nothing_leaves_cells(tmp_path: Path) -> None:
    await talk(tmp_path)
    async with house(tmp_path, warm_start=True) as h:
        await asyncio.gather(*(h.say("first", "And now?", 200) for _ in range(2)))
        await h.service.wait_idle()
        calls = [info for _, info in h.service.requests_after(None, 0)]
        assert [info.op for info in calls[:2]] == ["generate", "generate"]
        first = h.service.info(APP, "first")
        assert first.tiers[0] >= first.n_tokens - 1
        assert in_cells(h) in (["second"], ["third"]), "there is room for one of the two"


@on_a_loop
async def test_a_service_that_stops_at_once_brings_nothing_back(tmp_path: Path) -> None:
    await talk(tmp_path)
    async with house(tmp_path, warm_start=True) as h:
        await h.service.stop()
        assert not [info for _, info in h.service.requests_after(None, 0)]


@on_a_loop
async def test_a_conversation_goes_on_in_the_context_that_is_just_being_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_start, "PAUSE_S", 0)
    history = [Message("user", "one " * 40)]
    async with house(tmp_path) as h:
        found = (await h.service.resolve(APP, history)).context.id
        await h.call(found, Turn(tuple(history)), None)
        history.append(Message("user", "two"))
    async with house(tmp_path, warm_start=True) as h:
        while not list(h.service.requests_after(None, 0)):
            await asyncio.sleep(0)
        (info,) = (info for _, info in h.service.requests_after(None, 0))
        assert info.op == "hint" and info.state != "ended", "it is under way"
        again = await h.service.resolve(APP, history)
        assert again.context.id == found and again.n_messages == 1
        assert len(h.service.ids(APP)) == 1, "nothing was copied"


def stored(name: str, n_tokens: int, n_kv: int, used: float, **fields: object) -> LiveContext:
    row = ContextRow(ContextId(name), AppId("1000/test"), name, "model", "vocab", 0.0, used, n_tokens)
    live = LiveContext(row, b"root", usable=True, last_used=used)
    live.unread, live.n_kv, live.keys = Unread(n_tokens, 1, 0), n_kv, [ChunkKey(b"")] * -(-n_kv // 64)
    for field, value in fields.items():
        setattr(live, field, value)
    return live


def test_only_what_is_stored_and_can_be_used_as_it_is_comes_back() -> None:
    good = [stored("a", 100, 64, 1.0), stored("b", 100, 100, 3.0)]
    bad = [
        stored("lost", 200, 64, 9.0),
        stored("damaged", 0, 0, 8.0, damage="torn"),
        stored("other-model", 64, 64, 7.0, usable=False),
        stored("adapted", 64, 64, 6.0, adapter="terse"),
        stored("empty", 0, 0, 5.0),
    ]
    assert last_used(by_use([*bad, *good]), 200) == good
    assert last_used(by_use([*bad, *good]), 199) == good[1:]
    large = stored("large", 300, 300, 4.0)
    assert last_used(by_use([*good, large]), 299) == [], "not one that was used before it"
