"""Contexts of many apps: made, forked, cut, deleted, listed, and what they share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmaas import errors
from llmaas.calls import Generation, Turn
from llmaas.clock import RealClock
from llmaas.kvchunks.store.store import ContextRow, Store
from llmaas.records import CHUNK_TOKENS, AppId, ContextId
from llmaas.service.directory import Directory
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house

TEXT = "All happy families are alike; every unhappy family is unhappy in its own way. "


@on_a_loop
async def test_a_fork_shares_its_parents_chunks_and_then_goes_its_own_way(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="trunk", system=None)
        await h.say("trunk", TEXT * 3, 10)
        await h.service.wait_idle()
        on_disk = h.store.stats().chunks
        twin = await h.service.fork(APP, "trunk", name="twin")
        assert twin.n_tokens == len(h.tokens("trunk"))
        assert h.store.stats().chunks == on_disk
        assert (await h.say("twin", "same", 9))[0] == (await h.say("trunk", "same", 9))[0]
        await h.service.delete(APP, "trunk")
        await h.service.wait_idle()
        await h.say("twin", "more", 5)


@on_a_loop
async def test_what_forks_compute_of_a_context_that_was_never_computed_is_computed_once(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        document = await h.service.create(APP, name="document", system=TEXT * 6)
        await h.service.fork(APP, "document", name="first", n_messages=None)
        await h.say("first", "a question", 5)
        await h.service.delete(APP, "first")
        await h.service.wait_idle()
        kept = h.service.show(APP, "document").info.tiers
        assert sum(kept[:3]) == document.n_tokens // CHUNK_TOKENS * CHUNK_TOKENS > 0
        await h.service.fork(APP, "document", name="second", n_messages=None)
        _, done = await h.say("second", "another question", 5)
        assert done.switch.recomputed == 0 and done.switch.tokens == sum(kept[:3])


@on_a_loop
async def test_truncating_to_a_message_and_answering_again_gives_the_same_answer(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "one " + TEXT, 10)
        first, _ = await h.say("x", "two " + TEXT, 10)
        assert (await h.service.truncate(APP, "x", n_tokens=None, n_messages=2)).n_messages == 2
        again, _ = await h.say("x", "two " + TEXT, 10)
        assert again == first
        await h.service.truncate(APP, "x", n_tokens=70, n_messages=None)
        assert len(h.tokens("x")) == 70
        for bad in (
            {"n_tokens": 71, "n_messages": None},
            {"n_tokens": None, "n_messages": 9},
            {"n_tokens": 1, "n_messages": 1},
        ):
            with pytest.raises(errors.BadRequest):
                await h.service.truncate(APP, "x", **bad)


@on_a_loop
async def test_deleting_a_context_ends_its_call_and_forgets_its_chunks(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"step_time": lambda n: 0.002}) as h:
        await h.service.create(APP, name="x", system=None)
        job = asyncio.create_task(h.say("x", TEXT, 500))
        await asyncio.sleep(0.05)
        await h.service.delete(APP, "x")
        with pytest.raises(errors.Cancelled):
            await job
        await h.service.wait_idle()
        with pytest.raises(errors.UnknownContext):
            h.service.show(APP, "x")
    with Store(tmp_path) as store:
        assert not store.stats().chunks


@on_a_loop
async def test_apps_see_only_their_own_contexts(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        mine = await h.service.create(APP, name="x", system=None)
        other = AppId("1000/other")
        for ref in (mine.id, "x"):
            with pytest.raises(errors.UnknownContext):
                h.service.show(other, ref)
        await h.service.create(other, name="x", system=None)
        assert len(h.service.contexts(APP)) == 1 and len(h.service.contexts(None)) == 2
        with pytest.raises(errors.ContextExists):
            await h.service.create(APP, name="x", system=None)


@on_a_loop
async def test_too_long_a_prompt_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "hi", 3)
        before = h.tokens("x")
        with pytest.raises(errors.ContextTooLong):
            await h.say("x", "x" * 2000, 3)
        assert h.tokens("x") == before
        with pytest.raises(errors.ContextTooLong):
            await h.service.create(APP, name="long", system="x" * 2000)
        await h.service.create(APP, name="long", system="short")
        await h.service.create(APP, name="empty", system=None)
        with pytest.raises(errors.BadRequest):
            await h.call("empty", Turn(), Generation(3))


@on_a_loop
async def test_a_context_of_another_tokenizer_is_kept_but_not_used(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", TEXT, 3)
    async with house(tmp_path, engine={"vocab": "other", "fingerprint": "other"}) as h:
        assert not h.service.contexts(APP)[0].usable
        with pytest.raises(errors.ModelMismatch):
            await h.say("x", "hi", 3)
    async with house(tmp_path, engine={"fingerprint": "finer-weights"}) as h:
        _, done = await h.say("x", "hi", 3)
        assert done.switch.disk == 0 and done.n_tokens > 80, "same tokens, other weights: recomputed"


@on_a_loop
async def test_contexts_with_the_tokenizers_former_name_are_used_and_renamed(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"vocab": "by version 0.1"}) as h:
        await h.service.create(APP, name="x", system=None)
        _, first = await h.say("x", TEXT, 3)
    async with house(tmp_path, engine={"vocab": "texts", "former_vocab": "by version 0.1"}) as h:
        _, done = await h.say("x", "hi", 3)
        assert done.n_tokens > first.n_tokens and not done.switch.recomputed, "same weights: not even its KV is lost"
    async with house(tmp_path, engine={"vocab": "texts", "former_vocab": "of a repaired file"}) as h:
        await h.say("x", "hi", 3)


@on_a_loop
async def test_contexts_with_the_former_name_are_used_when_the_disk_is_too_full_to_rename_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, engine={"vocab": "before"}) as h:
        await h.service.create(APP, name="x", system=None)

    def full(*_: object) -> int:
        raise errors.DiskFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "rename_vocab", full)
        async with house(tmp_path, engine={"vocab": "now", "former_vocab": "before"}) as h:
            await h.say("x", "hi", 3)
    async with house(tmp_path, engine={"vocab": "now", "former_vocab": "before"}) as h:
        await h.say("x", "hi", 3)
    async with house(tmp_path, engine={"vocab": "now"}) as h:
        await h.say("x", "hi", 3)


@on_a_loop
async def test_unnamed_contexts_get_names_of_their_own_even_at_the_same_time(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        made = await asyncio.gather(*(h.service.create(APP, name=None, system=None) for _ in range(5)))
        assert len({info.name for info in made}) == 5


class SetBack(RealClock):
    """A wall clock that somebody sets back by a day at every look."""

    looks = 0

    def wall(self) -> float:
        self.looks += 1
        return 1_700_000_000.0 - 86400.0 * self.looks


@on_a_loop
async def test_contexts_are_listed_by_use_whatever_the_wall_clock_does(tmp_path: Path) -> None:
    async with house(tmp_path, clock=SetBack()) as h:
        for name in "abc":
            await h.service.create(APP, name=name, system=None)
        await h.say("a", "hello")
        await h.service.truncate(APP, "b", n_tokens=0, n_messages=None)
        await h.service.fork(APP, "a", name="d")
        assert [info.name for info in h.service.contexts(APP)] == ["d", "b", "a", "c"]


@on_a_loop
async def test_what_a_fork_needs_outlives_a_context_that_was_cut_before_it_was_deleted(tmp_path: Path) -> None:
    """The chunks are sealed under the key of the first, which no longer contains them when its key is destroyed."""

    async with house(tmp_path, engine={"n_cells": 700}) as h:
        await h.service.create(APP, name="first", system=None)
        await h.say("first", "word " * 60)
        await h.service.wait_idle()
        await h.service.fork(APP, "first", name="fork")
        await h.service.truncate(APP, "first", n_tokens=0, n_messages=None)
        await h.service.delete(APP, "first")
        h.service.budget(pool_bytes=0)
        h.service.budget(pool_bytes=1 << 20)
        await h.service.create(APP, name="other", system=None)
        await h.say("other", "x" * 600)
        _, done = await h.say("fork", "on")
        assert done.switch.disk > 200
        counts = h.service.stats()["counts"]
        assert isinstance(counts, dict) and counts["chunks_damaged"] == 0


@on_a_loop
async def test_a_context_that_begins_like_another_of_its_app_takes_over_what_was_computed_for_that(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, engine={"n_cells": 1024}) as h:
        other = AppId("1000/other")
        first, twin, stranger = ((APP, "first"), (APP, "twin"), (other, "stranger"))
        system = "You answer in rhymes. " * 20
        answers = {}
        for app, name in (first, twin, stranger):
            await h.service.create(app, name=name, system=system)
            answers[name], done = await h.say(name, "Begin.", app=app)
            await h.service.wait_idle()
            shared = done.switch.pool + done.switch.disk
            assert (shared > 300) if name == "twin" else not shared
        assert len(set(answers.values())) == 1
        _, done = await h.say("twin", "Go on.")
        assert done.switch.cells > 400


def test_names_are_not_given_out_twice_and_apps_that_once_asked_for_one_are_forgotten() -> None:
    directory, given = Directory(), []
    for i in range(20_000):
        directory.fresh_name(AppId(f"1000/{i}"))
        if i % 100 == 0:
            given.append(directory.fresh_name(APP))
    assert len(set(given)) == len(given)
    again = [directory.fresh_name(AppId(f"1000/{i}")) for i in range(15_000)]
    assert set(again) == {"context-1"}, "less than 5000 of them are remembered"


@pytest.mark.parametrize("name", ["6f1c0e52a9b34d77", "6F1C0E52A9B34D77", "0" * 16])
@on_a_loop
async def test_a_name_that_looks_like_an_id_is_refused(tmp_path: Path, name: str) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        with pytest.raises(errors.BadRequest, match="id of a context"):
            await h.service.create(APP, name=name, system=None)
        with pytest.raises(errors.BadRequest, match="id of a context"):
            await h.service.fork(APP, "x", name=name)
        await h.service.create(APP, name=name[:15], system=None)


@on_a_loop
async def test_in_an_old_store_an_id_reaches_its_own_context_whatever_others_are_named(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        victim = await h.service.create(APP, name="victim", system=None)
        foreign = await h.service.create(AppId("1000/other"), name="x", system=None)
        model = h.thread.engine.info
        for n, name in enumerate((victim.id, foreign.id)):
            row = ContextRow(ContextId(f"{n:016x}"), APP, name, model.name, model.vocab, 1.0, 1.0, 0, "")
            h.store.create_context(row, [])
    async with house(tmp_path) as h:
        assert h.service.info(APP, victim.id).name == "victim"
        assert h.service.info(APP, foreign.id).id == f"{1:016x}", "another app's id is no id of this app"
        await h.service.delete(APP, victim.id)
        assert {info.id for info in h.service.contexts(APP)} == {f"{0:016x}", f"{1:016x}"}
        await h.service.delete(APP, victim.id)  # as a name, now that no context has the id
        assert {info.id for info in h.service.contexts(None)} == {f"{1:016x}", foreign.id}


@on_a_loop
async def test_contexts_are_numbered_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    other = AppId("1000/other")
    async with house(tmp_path) as h:
        for name in "abcde":
            await h.service.create(other if name == "c" else APP, name=name, system=None)
        await h.say("a", "used again", 1)
        await h.service.delete(APP, "d")
        await h.service.create(APP, name="f", system=None)
        assert [(n, info.name) for n, info in h.service.contexts_after(APP, 0)] == [
            (1, "a"),
            (2, "b"),
            (5, "e"),
            (6, "f"),
        ]
        assert [info.name for _, info in h.service.contexts_after(None, 2)] == ["c", "e", "f"]
        assert list(h.service.contexts_after(APP, 6)) == []


@on_a_loop
async def test_a_name_that_is_too_long_for_requests_is_replaced_by_the_id(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        model = h.thread.engine.info
        for n, length in enumerate((256, 257, 1 << 20)):
            row = ContextRow(ContextId(f"{n:016x}"), APP, "x" * length, model.name, model.vocab, 1.0, 1.0, 0, "")
            h.store.create_context(row, [])
    async with house(tmp_path) as h:
        assert {info.name for info in h.service.contexts(APP)} == {"x" * 256, f"{1:016x}", f"{2:016x}"}
        await h.service.delete(APP, f"{2:016x}")


@on_a_loop
async def test_a_context_that_many_want_at_once_is_made_once(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        wants = [h.service.create(APP, name="x", system=f"You are {i}.", exist_ok=True) for i in range(8)]
        infos = await asyncio.gather(*wants)
        assert len({info.id for info in infos}) == 1
        assert len(h.service.show(APP, "x").messages) == 1
        with pytest.raises(errors.ContextExists):
            await h.service.create(APP, name="x", system=None)
