"""What apps may keep: contexts, text and tokens."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas import errors
from llmaas.calls import CallSpec, Generation, Turn
from llmaas.errors import QuotaExceeded
from llmaas.kvchunks.store.store import ContextRow
from llmaas.records import NO_QUOTA, AppId, ContextId, Message
from llmaas.service.live_context import LiveContext
from llmaas.service.quotas import APPS_AT_ONCE, TOKEN, Quotas, Size
from tests.support.loop import on_a_loop
from tests.support.scripted import until
from tests.support.service_house import APP, House, house

OTHER = AppId("1000/other")
KIB = 1024


def counted(h: House) -> object:
    return h.service.stats()["text_bytes"]


@on_a_loop
async def test_an_app_has_as_many_contexts_as_it_may_keep_and_deleting_one_makes_room(tmp_path: Path) -> None:
    async with house(tmp_path, app_contexts=3) as h:
        made = await asyncio.gather(
            *(h.service.create(APP, name=None, system=None) for _ in range(5)), return_exceptions=True
        )
        refused = [each for each in made if isinstance(each, QuotaExceeded)]
        assert len(refused) == 2, "creates that are under way count too"
        assert "app_contexts" in refused[0].hint and "ctx rm" in refused[0].hint and "may keep 3" in refused[0].message
        first, second = h.service.contexts(APP)[:2]
        with pytest.raises(QuotaExceeded):
            await h.service.fork(APP, first.id, name="copy")
        await h.service.create(OTHER, name="x", system=None)
        await h.service.delete(APP, first.id)
        await h.service.fork(APP, second.id, name="copy")
    async with house(tmp_path, app_contexts=3) as h:
        with pytest.raises(QuotaExceeded):
            await h.service.create(APP, name="one more", system=None)
        with pytest.raises(errors.ContextExists):
            await h.service.create(OTHER, name="x", system=None)
        await h.service.create(OTHER, name="y", system=None)


@on_a_loop
async def test_text_beyond_the_quota_is_refused_and_leaves_everything_as_it_was(tmp_path: Path) -> None:
    async with house(tmp_path, app_text_bytes=13 * KIB) as h:
        for name in "ab":
            await h.service.create(APP, name=name, system=None)
        await h.say("a", "x" * 600, 2)
        assert 6500 < int(str(counted(h))) < 8000
        before, tokens = counted(h), h.tokens("b")
        for turn in (Turn((Message("user", "y" * 900),)), Turn(prompt="z" * 1000 + "y" * 9)):
            for generation in (None, Generation(2)):
                with pytest.raises(QuotaExceeded, match="may take 13312") as caught:
                    await h.call("b", turn, generation)
                assert "app_text_bytes" in caught.value.hint and "truncate" in caught.value.hint
        assert (counted(h), h.tokens("b")) == (before, tokens)
        with pytest.raises(QuotaExceeded):
            await h.service.create(APP, name="c", system="s" * 900)
        await h.say("a", "more", 2)
        await h.service.fork(APP, "b", name="empty")
        with pytest.raises(QuotaExceeded):
            await h.service.fork(APP, "a", name="copy")
        await h.service.truncate(APP, "a", n_tokens=10, n_messages=None)
        await h.call("b", Turn((Message("user", "y" * 900),)), None)
        await h.service.delete(APP, "b")
        await h.service.delete(APP, "a")
        await h.service.delete(APP, "empty")
        assert counted(h) == 0
        await h.service.create(APP, name="c", system="s" * 900)


@on_a_loop
async def test_what_is_over_the_quota_at_the_start_can_be_read_and_cut_but_not_grow(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="a", system=None)
        await h.say("a", "x" * 800, 2)
        kept = counted(h)
    async with house(tmp_path, app_text_bytes=2 * KIB) as h:
        assert counted(h) == kept
        assert len((await h.shown("a")).messages) == 2
        for text, n in (("y", 0), ("y", 2)):
            with pytest.raises(QuotaExceeded):
                await h.call("a", Turn((Message("user", text),)), Generation(n) if n else None)
        h.service.hint(APP, "a")
        await h.service.wait_idle()
        await h.service.truncate(APP, "a", n_messages=0, n_tokens=None)
        await h.say("a", "y", 2)


@on_a_loop
async def test_what_was_undone_or_dropped_is_not_counted(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"step_time": lambda n: 0.002, "n_cells": 512}, prefill_slice=16) as h:
        await h.service.create(APP, name="a", system=None)
        await h.say("a", "x" * 50, 2)
        before = counted(h)
        request, job = h.service.submit(APP, "a", CallSpec(Turn((Message("user", "y" * 300),))), lambda piece: None)
        await until(lambda: counted(h) != before)  # a turn counts while it runs
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled):
            await job
        assert counted(h) == before
        for i in range(6):
            await h.say("a", f"{i}" * 150, 4, on_full="shift")
        kept = counted(h)
    async with house(tmp_path, engine={"n_cells": 512}) as h:
        assert counted(h) == kept, "it is what the store has"


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 60)), max_size=200))
def test_all_apps_together_stay_near_four_quotas_and_none_is_kept_from_its_share(asked: list[tuple[str, int]]) -> None:
    most = 100
    quotas = Quotas(1000, most * TOKEN)
    kept = {name: LiveContext(row(name), b"", usable=True) for name in "abcdefgh"}
    for name, n in asked:
        mine = kept[name].tokens
        apps = len({other for other, live in kept.items() if live.tokens} | {name})
        try:
            quotas.refuse_text(AppId(name), Size(n * TOKEN, n))
        except QuotaExceeded:
            assert len(mine) + n > min(most, APPS_AT_ONCE * most // apps)
            continue
        mine.extend([0] * n)
        quotas.count(kept[name])
        assert len(mine) <= most
        assert quotas.nbytes == TOKEN * sum(len(live.tokens) for live in kept.values())
        assert quotas.nbytes <= APPS_AT_ONCE * most * TOKEN * (1 + 1 / 5 + 1 / 6 + 1 / 7 + 1 / 8)


def row(name: str) -> ContextRow:
    return ContextRow(ContextId(name), AppId(name), name, "model", "vocab", 0.0, 0.0, 0, "")


def test_no_quota_is_none() -> None:
    quotas = Quotas(10, NO_QUOTA)
    for name in "abcdefgh":
        quotas.refuse_text(AppId(f"0/{name}"), Size(sys.maxsize // 16, 1))
