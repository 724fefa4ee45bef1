"""Quotas of single apps: they hold at once and after a restart, and for that app alone."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import CallSpec, Generation, Turn
from llmaas.clock import RealClock
from llmaas.errors import AppExists, BadRequest, Busy, QuotaExceeded, UnknownApp
from llmaas.records import NO_APP_QUOTA, AppId, AppQuota, AppUse, Message
from tests.support.daemon import LONG
from tests.support.loop import on_a_loop
from tests.support.service_house import House, house

WEB, MAIL = AppId("1000/web"), AppId("1000/mail")


async def limited(h: House, **quota: Any) -> None:
    await h.service.apps.set_quota(WEB, AppQuota(**quota))


def turn(text: str = "hello") -> Turn:
    return Turn((Message("user", text),))


@pytest.mark.parametrize(
    "wrong",
    [
        {"contexts": -1},
        {"tokens": 2**62 + 1},
        {"disk_bytes": -5},
        {"requests": -1},
        {"rate": 0.0},
        {"rate": float("inf")},
        {"rate": float("nan")},
        {"priority": 10},
        {"priority": -1},
    ],
)
def test_a_quota_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"quota.{next(iter(wrong))}"):
        AppQuota(**wrong)


@on_a_loop
async def test_quotas_are_kept_with_the_app_over_restarts_and_changes_of_its_token(tmp_path: Path) -> None:
    quota = AppQuota(contexts=3, tokens=5000, disk_bytes=1 << 20, requests=2, rate=7.5, priority=6)
    async with house(tmp_path) as h:
        apps = h.service.apps
        assert (await apps.set_quota(WEB, quota)).quota == quota
        apps.refuse_without(WEB)  # a quota is no token
        with pytest.raises(UnknownApp):
            await apps.rotate(WEB)
        token = (await apps.add(WEB, contexts="refuse")).token
        with pytest.raises(AppExists):
            await apps.add(WEB, contexts="refuse", quota=NO_APP_QUOTA)
    async with house(tmp_path) as h:
        (info,) = h.service.apps.infos()
        assert (info.quota, info.used) == (quota, AppUse()) and info.created is not None
        await h.service.apps.rotate(WEB)
        assert h.service.apps.infos()[0].quota == quota and h.service.apps.app_of(token) is None
        await h.service.apps.remove(WEB, contexts="refuse")
        assert h.service.apps.infos() == []
        await limited(h, contexts=1)
        await limited(h)  # what says nothing is not kept
        assert h.service.apps.infos() == []
        await limited(h, contexts=1)
        await h.service.apps.remove(WEB, contexts="refuse")
        assert h.service.apps.infos() == []


@on_a_loop
async def test_contexts(tmp_path: Path) -> None:
    async with house(tmp_path, app_contexts=10) as h:
        await limited(h, contexts=2)
        made = [await h.service.create(WEB, name=f"c{i}", system=None) for i in range(2)]
        for create in (
            lambda: h.service.create(WEB, name="c", system=None),
            lambda: h.service.fork(WEB, made[0].id, name="f"),
        ):
            with pytest.raises(QuotaExceeded, match="may keep 2") as refused:
                await create()
            assert "llmaas app quota 1000/web contexts=N" in refused.value.hint
        for i in range(10):
            await h.service.create(MAIL, name=f"c{i}", system=None)
        with pytest.raises(QuotaExceeded, match="may keep 10") as of_all:
            await h.service.create(MAIL, name="c", system=None)
        assert "app_contexts" in of_all.value.hint
        await limited(h, contexts=30)  # more than others, too
        for i in range(20):
            await h.service.create(WEB, name=f"more{i}", system=None)
        assert h.service.used(WEB).contexts == 22
        await limited(h, contexts=0)  # nothing is deleted
        assert len(h.service.contexts(WEB)) == 22
    async with house(tmp_path, app_contexts=10) as h:
        with pytest.raises(QuotaExceeded, match="may keep 0"):
            await h.service.create(WEB, name="c", system=None)


@on_a_loop
async def test_tokens(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.service.create(WEB, name="a", system=None)
        await h.service.create(MAIL, name="a", system=None)
        await h.say("a", LONG, app=WEB)
        kept = h.service.used(WEB).tokens
        assert kept == h.service.show(WEB, "a").info.n_tokens > 50
        await limited(h, tokens=kept + 60)
        with pytest.raises(QuotaExceeded, match="tokens; they may take") as refused:
            await h.say("a", LONG, app=WEB)
        assert "app quota 1000/web tokens=N" in refused.value.hint
        assert h.service.show(WEB, "a").info.n_tokens == kept
        with pytest.raises(QuotaExceeded):
            await h.service.fork(WEB, "a", name="f")
        await h.say("a", LONG, app=MAIL)
        await h.say("a", "hi", 2, app=WEB)
        await h.service.truncate(WEB, "a", n_tokens=0, n_messages=None)
        assert h.service.used(WEB).tokens == 0
        await h.say("a", "hello", app=WEB)
    async with house(tmp_path) as h:
        assert h.service.used(WEB).tokens == h.service.contexts(WEB)[0].n_tokens > 0
        with pytest.raises(QuotaExceeded):
            await h.say("a", 3 * LONG, app=WEB)
        await h.service.delete(WEB, context.id)
        assert h.service.used(WEB) == AppUse()


@on_a_loop
async def test_anonymous_contexts_make_way_for_tokens_and_contexts(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        for i in range(3):
            found = await h.service.resolve(WEB, (Message("user", f"{i} {LONG}"),))
            await h.say(found.context.id, f"{i} {LONG}", app=WEB)
        await limited(h, tokens=h.service.used(WEB).tokens + 10)
        await h.service.create(WEB, name="named", system=None)
        await h.say("named", LONG, app=WEB)
        assert 1 <= sum(info.anonymous for info in h.service.contexts(WEB)) < 3
        await limited(h, contexts=2)
        await h.service.create(WEB, name="second", system=None)
        assert sorted(info.name for info in h.service.contexts(WEB)) == ["named", "second"]


@on_a_loop
async def test_requests(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"step_time": lambda n: 0.005}) as h:
        for app in (WEB, MAIL):
            await h.service.create(app, name="a", system=None)
        await limited(h, requests=2)

        def begin(app: AppId, operator: bool = False) -> asyncio.Future[Any]:
            spec = CallSpec(turn(), Generation(20))
            return h.service.submit(app, "a", spec, lambda piece: None, operator=operator)[1]

        running = [begin(WEB), begin(WEB)]
        with pytest.raises(Busy, match="2 requests") as refused:
            begin(WEB)
        assert refused.value.retryable and "app quota" in refused.value.hint
        assert h.service.used(WEB).requests == 2
        running += [begin(MAIL) for _ in range(5)]
        running.append(begin(WEB, operator=True))
        await asyncio.gather(*running)
        await limited(h, requests=0)
        with pytest.raises(Busy):
            begin(WEB)
        await limited(h)
        await begin(WEB)


@on_a_loop
async def test_tokens_per_second(tmp_path: Path) -> None:
    async with house(tmp_path, app_rate=200.0) as h:
        clock = RealClock()
        for app in (WEB, MAIL):
            await h.service.create(app, name="a", system=None)

        async def seconds(app: AppId) -> float:
            before = clock.now()
            await h.say("a", "hello", 9, app=app)
            return clock.now() - before

        await limited(h, rate=20.0)
        assert await seconds(WEB) > 0.3 > await seconds(MAIL)
        await limited(h)
        assert await seconds(WEB) < 0.3  # as every app again, not without a limit


@on_a_loop
async def test_disk(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        for app in (MAIL, WEB):
            for name in "ab":
                await h.service.create(app, name=name, system=None)
                await h.say(name, 6 * LONG, app=app)
        await h.service.wait_idle()
        before = h.service.used(WEB).disk_bytes
        assert before == h.service.used(MAIL).disk_bytes > 0
        await limited(h, disk_bytes=before // 2)
        await h.service.wait_idle()
        assert 0 < h.service.used(WEB).disk_bytes <= before // 2
        assert h.service.used(MAIL).disk_bytes == before
        texts = [h.service.show(WEB, name).messages for name in "ab"]
    async with house(tmp_path) as h:
        for name in "ab":
            await h.service.create(WEB, name=f"{name}2", system=None)
            await h.say(f"{name}2", 6 * LONG, app=WEB)
        await h.service.wait_idle()
        assert 0 < h.service.used(WEB).disk_bytes <= before // 2
        for name in "ab":
            await h.say(name, "again", app=WEB)  # what is not there is computed
        assert len(texts[0]) == 2


@on_a_loop
async def test_the_operator_sees_them_and_what_is_used(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(WEB, name="a", system=None)
        await limited(h, contexts=3, priority=7)
        assert h.service.stats()["app_quotas"] == {
            WEB: {"contexts": {"used": 1, "quota": 3}, "priority": {"used": None, "quota": 7}}
        }
        assert "app_quotas" not in h.service.stats(apps=False)
        (info,) = h.service.apps.infos()
        assert info.created is None and info.used.contexts == 1
        assert set(asdict(info.used)) < {field.name for field in fields(AppQuota)}


@on_a_loop
async def test_there_is_room_for_so_many_apps_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.service.apps.MOST_APPS", 2)
    async with house(tmp_path) as h:
        await limited(h, contexts=1)
        await h.service.apps.add(MAIL, contexts="refuse")
        for change in (
            h.service.apps.add(AppId("1/x"), contexts="refuse"),
            h.service.apps.set_quota(AppId("1/x"), AppQuota(contexts=1)),
        ):
            with pytest.raises(BadRequest, match="2 apps"):
                await change
        await limited(h, contexts=2)
