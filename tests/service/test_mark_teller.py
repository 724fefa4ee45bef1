"""Marks of what a daemon holds, and those by which a conversation would be found: they meet where one begins as another
does, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.api.mark_messages import MarksOf
from llmaas.errors import ContextTooLong
from llmaas.kvchunks.keys import namespace
from llmaas.policies.context_marks import ContextMarks, unpacked
from llmaas.records import CHUNK_TOKENS, AppId, Message
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

UID = 1000
LONG = "be kind and brief, and say where you have it from; " * 12


async def told(h: House, *messages: Message, app: AppId = APP) -> int:
    """How many of the first tokens of such a conversation the daemon tells that it holds."""
    marks = h.service.transfers.marks
    listed = await marks.listed(UID)
    found = await marks.of(app, MarksOf(messages, (namespace(app, listed.fingerprint),)))
    return ContextMarks.from_bytes(listed.marks).held(unpacked(found.chains[0]))


@on_a_loop
async def test_what_begins_as_a_context_does_is_found_as_far_as_it_is_the_same(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 4096}) as h:
        system = Message("system", LONG)
        assert await told(h, system, Message("user", "hello")) == 0
        await h.service.create(APP, name="x", system=LONG)
        await h.say("x", "one two three")
        await h.service.wait_idle()
        n_system = (await h.service.transfers.marks.of(APP, MarksOf((system,), (bytes(16),), answer=False))).n_tokens
        other = await told(h, system, Message("user", "hello"))
        assert 4 * CHUNK_TOKENS <= other <= n_system
        assert other > n_system - 8 * CHUNK_TOKENS, "the last mark is at most seven chunks before they part"
        shown = h.service.show(APP, "x").messages
        n_all = h.service.info(APP, "x").n_tokens
        assert await told(h, *shown, Message("user", "and?")) == n_all // CHUNK_TOKENS * CHUNK_TOKENS
        assert await told(h, Message("system", "!" + LONG)) == 0
        assert await told(h, system, app=AppId("1000/other")) == 0, "another app's chunks are not found"
    async with house(tmp_path, engine={"n_cells": 4096}) as h:
        await h.service.wait_idle()
        assert await told(h, *shown) >= other, "also after a restart"
        await h.service.delete(APP, "x")
        assert await told(h, *shown) == 0


@on_a_loop
async def test_a_roots_chain_is_that_of_its_app_and_more_than_are_asked_for_cost_one_reading(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        marks = h.service.transfers.marks
        roots = tuple(namespace(AppId(f"{uid}/notes"), "m") for uid in range(16))
        found = await marks.of(APP, MarksOf((Message("user", "word " * 40),), roots))
        assert len(set(found.chains)) == len(found.chains) == 16
        assert {len(chain) for chain in found.chains} == {found.n_tokens // CHUNK_TOKENS * 8}
        with pytest.raises(ContextTooLong):
            await marks.of(APP, MarksOf((Message("user", "word " * 9000),), roots[:1]))


@on_a_loop
async def test_marks_are_few_those_of_the_last_used_and_of_the_users_own_apps(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 4096}) as h:
        for name in "abc":
            await h.service.create(APP, name=name, system=None)
            await h.say(name, f"{name} " * 300)
        await h.service.wait_idle()
        marks = h.service.transfers.marks
        whole = await marks.listed(UID)
        n = len(whole.marks) // 8
        assert (whole.n_left_out, n % 3) == (0, 0)
        some = await marks.listed(UID, most=2 * n // 3)
        assert (some.n_left_out, len(some.marks)) == (1, len(whole.marks) * 2 // 3)
        newest = ContextMarks.from_bytes(some.marks).marks
        await h.service.delete(APP, "a")
        assert ContextMarks.from_bytes((await marks.listed(UID, most=2 * n // 3)).marks).marks == newest, (
            "a was used first"
        )
        assert (await marks.listed(1)).marks == b""


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"messages": ()}, "messages"),
        ({"messages": (Message("user", "x"),) * 5000}, "messages"),
        ({"roots": ()}, "roots"),
        ({"roots": (bytes(16),) * 17}, "roots"),
        ({"roots": (bytes(16), bytes(15))}, r"roots\[1\]"),
    ],
)
def test_what_is_out_of_bounds_is_named(fields: dict[str, object], at_fault: str) -> None:
    good: dict[str, object] = {"messages": (Message("user", "x"),), "roots": (bytes(16),)}
    MarksOf(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=at_fault):
        MarksOf(**{**good, **fields})  # type: ignore[arg-type]
