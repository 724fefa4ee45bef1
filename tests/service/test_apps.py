"""The table of apps that have a token, and the file that it is kept in."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.app_token import is_token, token_hash
from llmaas.clock import RealClock
from llmaas.errors import AppExists, BadRequest, BadToken, Busy, LlmaasError, StoreFailed, UnknownApp
from llmaas.fair_thread import FairThread
from llmaas.records import AppId
from llmaas.service import app_file
from llmaas.service.app_file import AppRow, AppsDamaged, read_apps, write_apps
from llmaas.service.apps import Apps
from tests.support.loop import on_a_loop
from tests.support.service_house import House, house

MAIL, NOTES = AppId("1000/mail"), AppId("1000/notes")
ROWS = [AppRow(MAIL, token_hash("a"), 1.5), AppRow(NOTES, token_hash("b"), 2.5)]


# -- the file


def test_the_file_holds_hashes_and_no_token_and_is_the_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "apps.json"
    assert read_apps(path) == []
    os.umask(before := os.umask(0))
    try:
        write_apps(path, ROWS)
    finally:
        os.umask(before)
    assert read_apps(path) == ROWS
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", range(0, 400, 7))
def test_a_flipped_bit_anywhere_is_damage_or_changes_nothing(tmp_path: Path, where: int) -> None:
    path = tmp_path / "apps.json"
    write_apps(path, ROWS)
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= 1
    path.write_bytes(data)
    try:
        assert read_apps(path) == ROWS
    except AppsDamaged as error:
        assert str(path) in error.message and "app add" in error.hint


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "{", '{"version": 1}', '{"version": 2, "apps": {}, "checksum": ""}', "[" * 100_000]
)
def test_what_is_no_table_is_damage_and_not_an_empty_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "apps.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(AppsDamaged, match="damaged"):
        read_apps(path)


def test_a_file_that_others_may_write_to_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "apps.json"
    write_apps(path, ROWS)
    path.chmod(0o620)
    with pytest.raises(AppsDamaged, match="other users"):
        read_apps(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(AppsDamaged, match="regular"):
        read_apps(path)


def test_a_write_that_fails_or_is_cut_short_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "apps.json"
    write_apps(path, ROWS[:1])

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "write", "fchmod"):
        with monkeypatch.context() as patch:
            patch.setattr(app_file.os, call, fails)
            with pytest.raises(StoreFailed, match="No space"):
                write_apps(path, ROWS)
        assert read_apps(path) == ROWS[:1] and list(tmp_path.iterdir()) == [path]
    write_apps(path, ROWS)
    assert read_apps(path) == ROWS


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "apps.json", tmp_path / "other"
    other.write_text("mine")
    path.symlink_to(other)
    write_apps(path, ROWS)
    assert other.read_text() == "mine" and not path.is_symlink() and read_apps(path) == ROWS


# -- the table


@pytest.fixture
def evicted() -> list[tuple[AppId, LlmaasError]]:
    return []


@asynccontextmanager
async def apps_of(root: Path, evicted: list[tuple[AppId, LlmaasError]] | None = None) -> AsyncIterator[House]:
    async with house(root) as h:

        async def evict(app: AppId, error: LlmaasError) -> bool:
            if evicted is not None:
                evicted.append((app, error))
            return True

        h.service.apps.on_evict(evict)
        yield h


@on_a_loop
async def test_an_app_with_a_token_is_nobodys_without_also_after_a_restart(tmp_path: Path) -> None:
    async with apps_of(tmp_path) as h:
        h.service.apps.refuse_without(MAIL)
        made = await h.service.apps.add(MAIL, contexts="refuse")
        assert made.app == MAIL and is_token(made.token) and made.token not in repr(made)
    async with apps_of(tmp_path) as h:
        apps = h.service.apps
        assert apps.app_of(made.token) == MAIL
        assert apps.app_of(made.token.upper()) is apps.app_of(made.token[:-1]) is apps.app_of("") is None
        with pytest.raises(BadToken):
            apps.refuse_without(MAIL)
        apps.refuse_without(NOTES)
        apps.refuse_without(AppId("1001/mail"))
        assert [(info.app, info.used.contexts) for info in apps.infos()] == [(MAIL, 0)]
    assert made.token.removeprefix("llmaas_") not in "".join(
        path.read_bytes().hex() + path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()
    )


@on_a_loop
async def test_rotating_and_removing_end_the_old_token(
    tmp_path: Path, evicted: list[tuple[AppId, LlmaasError]]
) -> None:
    async with apps_of(tmp_path, evicted) as h:
        apps = h.service.apps
        first = await apps.add(MAIL, contexts="refuse")
        with pytest.raises(AppExists):
            await apps.add(MAIL, contexts="keep")
        second = await apps.rotate(MAIL)
        assert apps.app_of(first.token) is None and apps.app_of(second.token) == MAIL
        await apps.remove(MAIL, contexts="refuse")
        assert apps.app_of(second.token) is None
        apps.refuse_without(MAIL)
        for change in (apps.rotate(MAIL), apps.remove(MAIL, contexts="keep")):
            with pytest.raises(UnknownApp):
                await change
        assert [(app, error.code) for app, error in evicted] == [(MAIL, "bad_token")] * 3


@on_a_loop
async def test_of_many_rotations_at_once_one_token_is_left(tmp_path: Path) -> None:
    async with apps_of(tmp_path) as h:
        apps = h.service.apps
        await apps.add(MAIL, contexts="refuse")
        made = await asyncio.gather(*(apps.rotate(MAIL) for _ in range(20)))
        assert [apps.app_of(each.token) for each in made].count(MAIL) == 1
        left = [each.token for each in made if apps.app_of(each.token)]
    async with apps_of(tmp_path) as h:
        assert h.service.apps.app_of(left[0]) == MAIL


@pytest.mark.parametrize("change", ["add", "remove"])
@on_a_loop
async def test_contexts_that_others_could_have_made_or_could_read_are_asked_about(tmp_path: Path, change: str) -> None:
    async with apps_of(tmp_path) as h:
        apps, service = h.service.apps, h.service

        async def do(contexts: str) -> None:
            await (apps.add if change == "add" else apps.remove)(MAIL, contexts=contexts)

        if change == "remove":
            await apps.add(MAIL, contexts="refuse")
        await service.create(MAIL, name="inbox", system="squatted")
        await service.create(NOTES, name="inbox", system=None)
        with pytest.raises(BadRequest, match="1 contexts") as refused:
            await do("refuse")
        assert "--keep-contexts" in refused.value.hint
        assert len(service.contexts(MAIL)) == 1 and len(apps.infos()) == (change == "remove")
        await do("delete")
        assert service.contexts(MAIL) == [] and len(service.contexts(NOTES)) == 1
    async with apps_of(tmp_path) as h:
        assert h.service.contexts(MAIL) == []


@on_a_loop
async def test_contexts_may_be_kept(tmp_path: Path) -> None:
    async with apps_of(tmp_path) as h:
        made = await h.service.create(MAIL, name="inbox", system=None)
        await h.service.apps.add(MAIL, contexts="keep")
        await h.service.apps.remove(MAIL, contexts="keep")
        assert [info.id for info in h.service.contexts(MAIL)] == [made.id]


@on_a_loop
async def test_nobody_gets_in_while_an_app_is_given_a_token_or_loses_it(tmp_path: Path) -> None:
    async with apps_of(tmp_path) as h:
        apps, told = h.service.apps, list[str]()

        def look(enter: Callable[[], Any]) -> None:
            try:
                enter()
            except LlmaasError as error:
                told.append(error.code)

        token = ""

        async def evict(app: AppId, error: LlmaasError) -> bool:
            look(lambda: apps.refuse_without(app))
            look(lambda: apps.app_of(token))
            return True

        apps.on_evict(evict)
        token = (await apps.add(MAIL, contexts="refuse")).token
        await apps.remove(MAIL, contexts="refuse")
        assert told == ["busy", "bad_token", "busy"]


@on_a_loop
async def test_a_context_that_comes_late_is_asked_about_and_what_does_not_end_is_busy(tmp_path: Path) -> None:
    async with apps_of(tmp_path) as h:
        apps, service = h.service.apps, h.service

        async def late(app: AppId, error: LlmaasError) -> bool:
            await service.create(app, name="late", system=None)  # it was under way
            return True

        apps.on_evict(late)
        with pytest.raises(BadRequest, match="1 contexts"):
            await apps.add(MAIL, contexts="refuse")

        async def never(app: AppId, error: LlmaasError) -> bool:
            return False

        apps.on_evict(never)
        with pytest.raises(Busy, match="still run"):
            await apps.add(MAIL, contexts="delete")
        apps.refuse_without(MAIL)  # as if nothing had been
        assert apps.infos() == [] and len(service.contexts(MAIL)) == 1


@on_a_loop
async def test_a_disk_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with apps_of(tmp_path) as h:
        apps = h.service.apps
        made = await apps.add(MAIL, contexts="refuse")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(app_file.os, "fsync", full)
            changes = (apps.rotate(MAIL), apps.remove(MAIL, contexts="keep"), apps.add(NOTES, contexts="keep"))
            for change in changes:
                with pytest.raises(StoreFailed):
                    await change
        assert apps.app_of(made.token) == MAIL and len(apps.infos()) == 1
        apps.refuse_without(NOTES)


@on_a_loop
async def test_a_damaged_table_is_no_start(tmp_path: Path) -> None:
    async with apps_of(tmp_path) as h:
        await h.service.apps.add(MAIL, contexts="refuse")
    path = tmp_path / "apps.json"
    found = json.loads(path.read_text())
    del found["apps"][MAIL]
    path.write_text(json.dumps(found))
    async with apps_of(tmp_path / "other") as h:
        other = Apps(path, FairThread("apps"), h.service, RealClock())
        with pytest.raises(AppsDamaged):
            await other.start()
    path.unlink()
    async with apps_of(tmp_path) as h:
        h.service.apps.refuse_without(MAIL)


def test_a_token_is_256_bits_and_no_two_are_alike() -> None:
    from llmaas.service import apps

    source = Path(apps.__file__).read_text()
    assert "secrets.token_bytes(TOKEN_BYTES)" in source and "compare_digest" in source
    assert re.fullmatch("llmaas_[0-9a-f]{64}", apps.token_of(apps.secrets.token_bytes(apps.TOKEN_BYTES)))


_WRITER = """
import sys
from pathlib import Path
from llmaas.records import AppId, AppQuota
from llmaas.service.app_file import AppRow, write_apps
n = 0
while True:
    n = n % 300 + 1
    write_apps(Path(sys.argv[1]), [AppRow(AppId(f"1/app-{i}"), bytes(32), 1.5, AppQuota(n)) for i in range(n)])
    print(n, flush=True)
"""


def test_a_kill_at_any_moment_leaves_one_table_or_the_next(tmp_path: Path) -> None:
    path = tmp_path / "apps.json"
    for wait in range(8):
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(1 + 7 * wait):
                told = int(writer.stdout.readline())
            time.sleep(wait * 0.0007)
            writer.kill()
            told = int((writer.stdout.read().split() or [told])[-1])
        rows = read_apps(path)
        assert len(rows) in (told, told % 300 + 1), "what was acknowledged is there, or what came after it"
        assert all(row.quota.contexts == len(rows) for row in rows)
