"""Contexts of an earlier run: listed at once, looked at in the background, read when they are used."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmaas.calls import Generation, Turn
from llmaas.errors import ContextDamaged, StoreFailed
from llmaas.kvchunks.store.store import Span, Store
from llmaas.records import AppId, ContextId, ContextInfo, Message
from llmaas.service import stored_contexts
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, MASTER, House, house

TEXT = "It was the best of times, it was the worst of times. " * 4
NAMES = ("a", "b", "c", "d")


class Gate:
    """Lets contexts be looked at in the background, or not."""

    def __init__(self) -> None:
        self.looked_at: list[ContextId] = []
        self._open = threading.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait(self, context: ContextId) -> None:
        assert self._open.wait(30)
        self.looked_at.append(context)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A start looks at one context only, and the gate says when the others are."""
    found, spans = Gate(), Store.spans

    def spans_behind_gate(store: Store, context: ContextId) -> list[Span]:
        if threading.current_thread().name == "slow":
            found.wait(context)
        return spans(store, context)

    monkeypatch.setattr(stored_contexts, "AT_START", -1)
    monkeypatch.setattr(stored_contexts, "BATCH", 1)
    monkeypatch.setattr(Store, "spans", spans_behind_gate)
    yield found
    found.open()


async def fill(root: Path) -> None:
    """Four contexts with chunks on DISK, used one after another."""
    async with house(root) as h:
        for name in NAMES:
            await h.service.create(APP, name=name, system=f"You are {name}.")
            await h.say(name, TEXT, 4)
        await h.service.wait_idle()


def shut_after_start(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shut the gate as soon as one context has been looked at."""
    wait = gate.wait

    def once(context: ContextId) -> None:
        wait(context)
        gate.shut()

    monkeypatch.setattr(gate, "wait", once)


def by_name(h: House) -> dict[str, ContextInfo]:
    return {info.name: info for info in h.service.contexts(APP)}


@on_a_loop
async def test_the_contexts_used_last_are_looked_at_first(tmp_path: Path, gate: Gate) -> None:
    await fill(tmp_path)
    gate.looked_at.clear()
    async with house(tmp_path) as h:
        await h.service.wait_idle()
        ids = {info.id: name for name, info in by_name(h).items()}
        assert [ids[context] for context in gate.looked_at] == ["d", "c", "b", "a"]
        assert all(info.tiers[2] >= 192 for info in by_name(h).values())


@on_a_loop
async def test_a_context_that_nobody_has_looked_at_comes_back_from_disk_all_the_same(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path)
    shut_after_start(gate, monkeypatch)
    async with house(tmp_path) as h:
        _, done = await h.say("a", "go on", 4)
        assert done.switch.disk > 128 and done.switch.recomputed <= 64
        assert [m.content for m in (await h.shown("b")).messages][:2] == ["You are b.", TEXT]
        monkeypatch.undo()
        gate.open()
        await h.service.wait_idle()
        for name in ("b", "c", "d"):
            _, done = await h.say(name, "go on", 4)
            assert done.switch.disk > 128 and done.switch.recomputed <= 64, "nothing was dropped meanwhile"


@on_a_loop
async def test_a_deletion_at_once_leaves_a_fork_its_chunks(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", TEXT, 4)
        await h.service.wait_idle()
        await h.service.fork(APP, "x", name="y")
        await h.service.create(APP, name="last", system="Hi.")
    shut_after_start(gate, monkeypatch)
    async with house(tmp_path) as h:
        deletion = asyncio.ensure_future(h.service.delete(APP, "x"))
        await asyncio.sleep(0.05)
        assert not deletion.done()
        monkeypatch.undo()
        gate.open()
        await deletion
        _, done = await h.say("y", "go on", 4)
        assert done.switch.disk > 128 and done.switch.recomputed <= 64


@on_a_loop
async def test_a_context_made_before_all_have_been_looked_at_shares_their_chunks(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path)
    shut_after_start(gate, monkeypatch)
    async with house(tmp_path) as h:
        await h.service.create(APP, name="twin", system="You are a.")
        _, done = await h.say("twin", TEXT, 4)
        assert done.switch.disk >= 128, "those of 'a'"
        monkeypatch.undo()
        gate.open()


@on_a_loop
async def test_damage_is_said_in_the_background_or_at_the_first_use(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as con, con:
        for number in (1, 2):
            con.execute("UPDATE spans SET text = 'It was not.' WHERE context = ? AND role = 'user'", (number,))
    shut_after_start(gate, monkeypatch)
    async with house(tmp_path) as h:
        assert "damaged" not in caplog.text and all(info.usable for info in by_name(h).values())
        for _ in range(2):
            with pytest.raises(ContextDamaged, match=r"'a' of 1000/test .*tokens could be read"):
                await h.say("a", "go on", 4)
        assert not by_name(h)["a"].usable
        monkeypatch.undo()
        gate.open()
        await h.service.wait_idle()
        assert "'b' of 1000/test" in caplog.text and "llmaas doctor --repair" in caplog.text
        assert {name for name, info in by_name(h).items() if info.usable} == {"c", "d"}
        for name in ("a", "b"):
            await h.service.delete(APP, name)


@on_a_loop
async def test_chunks_of_no_context_are_dropped_when_all_have_been_looked_at(tmp_path: Path, gate: Gate) -> None:
    async with house(tmp_path, store=Store(tmp_path)) as h:
        for name in NAMES:
            await h.service.create(APP, name=name, system=f"You are {name}.")
            await h.say(name, TEXT, 4)
        await h.service.wait_idle()
        n_chunks = len(list(h.store.chunks())) + len(NAMES)  # a last chunk of each, when it stops
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as con, con:
        con.execute("PRAGMA foreign_keys = ON")
        con.execute("DELETE FROM contexts WHERE name = 'b'")
    async with house(tmp_path, store=Store(tmp_path)) as h:
        await h.service.wait_idle()
        for _ in range(100):
            if len(list(h.store.chunks())) == n_chunks * 3 // 4:
                break
            await asyncio.sleep(0.02)
        assert len(list(h.store.chunks())) == n_chunks * 3 // 4


@pytest.mark.parametrize("looked_at", [True, False])
@on_a_loop
async def test_messages_and_bytes_are_counted_as_they_are_found_when_they_are_read(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, looked_at: bool
) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        await h.say("x", "hi", 5)
        for n in (4, 3):
            await h.call("x", Turn(), Generation(n))  # the same answer goes on
        await h.call("x", Turn((Message("user", "and"), Message("assistant", "so"))), None)
        await h.call("x", Turn((Message("user", "then?"),)), None)
        await h.say("x", "now?", 5)
        await h.service.create(APP, name="raw", system=None)
        await h.call("raw", Turn(prompt="no messages"), Generation(3))
        await h.service.create(APP, name="empty", system=None)
        before, nbytes = by_name(h), h.service.stats()["text_bytes"]
    if not looked_at:
        shut_after_start(gate, monkeypatch)
    async with house(tmp_path) as h:
        if looked_at:
            await h.service.wait_idle()
        for _ in range(2):
            found = by_name(h)
            assert {n: (i.n_messages, i.n_tokens) for n, i in found.items()} == {
                n: (i.n_messages, i.n_tokens) for n, i in before.items()
            }
            assert h.service.stats()["text_bytes"] == nbytes
            for name in found:
                assert len((await h.shown(name)).messages) == found[name].n_messages
        gate.open()


@on_a_loop
async def test_a_service_can_be_stopped_while_contexts_are_looked_at(tmp_path: Path, gate: Gate) -> None:
    await fill(tmp_path)
    async with house(tmp_path) as h:
        await h.service.stop()
        assert len(gate.looked_at) < 2 * len(NAMES)


# -- conversations that are looked for --


QUESTION = Message("user", "What next?")


async def histories(root: Path) -> dict[str, tuple[Message, ...]]:
    """What the contexts of ``fill`` hold, and one anonymous context more, "~", the last that was used."""
    await fill(root)
    async with house(root) as h:
        found = {name: (await h.shown(name)).messages for name in NAMES}
        context = (await h.service.resolve(APP, [Message("system", "You are nobody.")])).context.id
        await h.call(context, Turn((Message("system", "You are nobody."), Message("user", TEXT))), Generation(4))
        await h.service.wait_idle()
        return found | {"~": h.service.show(APP, context).messages}


@on_a_loop
async def test_a_conversation_is_found_before_its_context_has_been_looked_at(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = await histories(tmp_path)
    shut_after_start(gate, monkeypatch)
    async with house(tmp_path) as h:
        asked = [asyncio.ensure_future(h.service.resolve(APP, [*known[name], QUESTION])) for name in ("a", "~", "b")]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in asked), "nothing may be said of contexts that are not known"
        monkeypatch.undo()
        gate.open()
        for name, one in zip(("a", "~", "b"), asked, strict=True):
            found = await one
            assert found.n_messages == len(known[name])
            assert (await h.shown(found.context.id)).messages == known[name]
            assert (found.context.id == by_name(h)[found.context.name].id) and found.context.anonymous
            _, done = await h.call(found.context.id, Turn((QUESTION,)), Generation(4))
            assert done.switch.disk > 128 and done.switch.recomputed <= 64


@on_a_loop
async def test_only_the_contexts_of_the_app_that_looks_for_one_must_be_known(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = AppId("1000/other")
    await fill(tmp_path)
    async with house(tmp_path) as h:
        theirs = await h.service.create(other, name="x", system="You are theirs.")
        await h.service.wait_idle()
    gate.looked_at.clear()
    shut_after_start(gate, monkeypatch)
    async with house(tmp_path) as h:
        found = await h.service.resolve(other, [Message("system", "You are theirs."), QUESTION])
        assert found.n_messages == 1 and gate.looked_at == [theirs.id], "the one that was used last"
        monkeypatch.undo()
        gate.open()


@on_a_loop
async def test_no_conversation_goes_on_in_rows_that_were_altered(tmp_path: Path, gate: Gate) -> None:
    known = await histories(tmp_path)
    altered = (
        "UPDATE spans SET text = 'It was not.' WHERE role = 'user' AND context = "
        "(SELECT num FROM contexts WHERE id = ?)"
    )
    with Store(tmp_path, master=MASTER) as store:
        ids = {row.name: row.id for row in store.contexts()}
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as con, con:
        con.execute(altered, (ids["a"],))
    async with house(tmp_path) as h:
        changed = [*known["a"][:1], Message("user", "It was not."), *known["a"][2:], QUESTION]
        for history in ([*known["a"], QUESTION], changed):
            assert (await h.service.resolve(APP, history)).n_messages == 0
        # Two that have been looked at, and are altered before their first use: a copy, and one that would go on.
        with closing(sqlite3.connect(tmp_path / "index.sqlite")) as con, con:
            con.execute(altered, (ids["b"],))
            (long,) = [i.id for i in h.service.contexts(APP) if i.name.startswith("~") and i.n_tokens > 128]
            con.execute(altered, (long,))
        for name in ("b", "~"):
            found = await h.service.resolve(APP, [*known[name], QUESTION])
            assert found.n_messages == 0 and found.context.n_messages == 0
        found = await h.service.resolve(APP, [*known["c"], QUESTION])
        assert found.n_messages == len(known["c"])
        damaged = [info.id for info in h.service.contexts(APP) if info.name in ("a", "b") or not info.usable]
        assert len(damaged) == 3
        for context in damaged:
            await h.service.delete(APP, context)


@on_a_loop
async def test_a_store_that_fails_is_said_and_not_taken_for_an_unknown_conversation(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = await histories(tmp_path)
    failing = threading.Event()
    spans = Store.spans

    def fails(store: Store, context: ContextId) -> list[Span]:
        if failing.is_set():
            raise StoreFailed("the disk does not answer")
        found = spans(store, context)
        failing.set()
        return found

    monkeypatch.setattr(Store, "spans", fails)
    async with house(tmp_path) as h:
        with pytest.raises(StoreFailed):
            await h.service.resolve(APP, [*known["a"], QUESTION])
        monkeypatch.undo()
        assert (await h.service.resolve(APP, [*known["a"], QUESTION])).n_messages == len(known["a"])
