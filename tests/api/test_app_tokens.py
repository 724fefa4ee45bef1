"""Connections and tokens of apps: who may be which app, and the end of connections whose token counts no more."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.caller import Door, app_named, caller_of
from llmaas.api.client import Client
from llmaas.api.daemon_address import TOKEN_VARIABLE, admin_socket
from llmaas.api.server import Limits
from llmaas.api.wire import Frame
from llmaas.cli import options
from llmaas.errors import AppExists, BadRequest, BadToken, Forbidden, NotServing, UnknownApp
from llmaas.records import AppId, AppQuota
from tests.support.daemon import SOON, serving
from tests.support.loop import on_a_loop
from tests.support.scripted import HELLO, Peer, ScriptedApps, peer, until
from tests.support.scripted import serving as serving_scripted

ME = os.geteuid()
STRANGER = ME + 4242


def tokens() -> ScriptedApps:
    found = ScriptedApps()
    found.tokens = {"secret": AppId(f"{ME}/mail"), "other": AppId("7/mail")}
    return found


async def greeted(path: Path, **fields: object) -> tuple[Peer, Frame]:
    """A connection with these fields in its hello, and the daemon's answer."""
    made = await peer(path, app=None)
    made.send({**{name: value for name, value in HELLO.items() if name != "app"}, **fields})
    answer = await made.frame()
    assert answer is not None
    return made, answer


# -- who is who


@pytest.mark.parametrize("door", Door)
@pytest.mark.parametrize("uid", [ME, STRANGER])
@pytest.mark.parametrize("app", ["mail", None])
def test_a_token_makes_its_app_of_whoever_has_it_and_no_more(door: Door, uid: int, app: str | None) -> None:
    caller = caller_of(uid, app, door, tokens=tokens(), token="secret")
    assert (caller.app, caller.is_operator, caller.uid) == (f"{ME}/mail", False, ME)
    with pytest.raises(Forbidden):
        caller.owner(True)


def test_a_name_that_has_a_token_is_nobodys_without_but_the_operators() -> None:
    for door, uid in ((Door.APPS, ME), (Door.APPS, 0)):
        if uid == ME or uid == 0 == ME:
            with pytest.raises(BadToken):
                caller_of(uid, "mail", door, tokens=tokens())
    with pytest.raises(BadToken):  # the user 7's, by what serves other protocols
        caller_of(ME, "mail", Door.ADMIN, tokens=tokens(), on_behalf_of=7)
    assert caller_of(ME, "mail", Door.ADMIN, tokens=tokens()).is_operator
    assert caller_of(ME, "notes", Door.APPS, tokens=tokens()).app == f"{ME}/notes"
    assert caller_of(8, "mail", Door.APPS, tokens=tokens()).app == "8/mail"


@pytest.mark.parametrize(
    ("token", "app", "on_behalf_of"),
    [
        ("wrong", "mail", None),
        ("wrong", None, None),
        ("", "mail", None),
        ("secret", "notes", None),
        ("secret", "mail", 7),
        ("other", "mail", ME),
        ("secret\0", "mail", None),
        ("\udcff€", "mail", None),
    ],
)
def test_all_that_is_wrong_with_a_token_is_one_error(token: str, app: str | None, on_behalf_of: int | None) -> None:
    with pytest.raises(BadToken) as wrong:
        caller_of(ME, app, Door.ADMIN, tokens=tokens(), token=token, on_behalf_of=on_behalf_of)
    assert wrong.value.message == "this is not the token of " + (f"the app {app!r}" if app else "an app")


@pytest.mark.parametrize(
    "name", ["", "a/b", "1000/", "/mail", "01/mail", "-1/mail", "4294967296/mail", "1/2/mail", "1/m l", "ä", "²/mail"]
)
def test_an_operator_cannot_name_what_no_app_is_called(name: str) -> None:
    with pytest.raises(BadRequest):
        app_named(name)


def test_an_operator_names_its_own_apps_and_those_of_others() -> None:
    assert (app_named("mail"), app_named("7/mail"), app_named("0/mail")) == (f"{ME}/mail", "7/mail", "0/mail")


# -- the hello


@pytest.mark.parametrize("token", [7, b"x", ["x"], "x" * 257, True])
@on_a_loop
async def test_what_is_no_token_is_a_bad_hello_that_does_not_repeat_it(path: Path, token: object) -> None:
    async with serving_scripted(path):
        made, answer = await greeted(path, app="mail", token=token)
        assert answer["code"] == "bad_request" and "token" in answer["message"]
        assert str(token) not in str(answer).replace("'token'", "")
        assert await made.rest() == []
        await made.close()


@on_a_loop
async def test_a_hello_without_app_and_token_is_refused(path: Path) -> None:
    async with serving_scripted(path):
        made, answer = await greeted(path)
        assert (answer["code"], answer["message"]) == ("bad_request", "field 'app' is missing")
        await made.close()


@on_a_loop
async def test_tokens_are_in_no_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "llmaas_" + "5a" * 32
    async with serving_scripted(path) as (backend, _):
        backend.apps.tokens[secret] = AppId("7/mail")
        for fields in ({"token": secret}, {"token": secret + "0", "app": "mail"}, {"token": secret, "uid": "x"}):
            made, answer = await greeted(path, **fields)
            assert secret not in str(answer)
            await made.close()
    assert caplog.text and secret not in caplog.text


@on_a_loop
async def test_a_connection_with_a_token_takes_its_apps_places_on_either_socket(path: Path) -> None:
    async with serving_scripted(path, limits=Limits(app_connections=3)) as (backend, server):
        backend.apps.tokens["secret"] = AppId("7/mail")
        made = [(await greeted(p, token="secret"))[0] for p in (path, admin_socket(path), path)]
        assert all(connection.shares is server.shares[Door.APPS] for connection in server.connections)
        for where in (path, admin_socket(path)):
            late, answer = await greeted(where, token="secret")
            assert answer["code"] == "busy" and "7/mail" in answer["message"]
            await late.close()
        for op in ("apps", "budget", "limit"):
            assert (await made[1].ask(1, op))["code"] == "forbidden"
        for each in made:
            await each.close()
        await until(lambda: not server.connections)


# -- the operator's operations, on a whole daemon


@pytest.mark.parametrize("op", ["apps", "app_add", "app_remove", "app_rotate", "app_quota"])
@on_a_loop
async def test_tokens_are_the_operators_business(tmp_path: Path, op: str) -> None:
    fields = {} if op == "apps" else {"name": "x", **({"quota": {}} if op == "app_quota" else {})}
    async with serving(tmp_path) as daemon:
        made = await peer(daemon.socket)
        assert (await made.ask(1, op, **fields))["code"] == "forbidden"
        await made.close()


@on_a_loop
async def test_programs_of_one_user_are_kept_apart_by_tokens(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("cli", admin=True) as operator:
        made = await operator.app_add("mail")
        assert made.app == f"{ME}/mail"
        with pytest.raises(AppExists):
            await operator.app_add(f"{ME}/mail")
        for wrong in ("", made.token[:-1], made.token + "0", "llmaas_" + "0" * 64, "€"):
            with pytest.raises(BadToken) as refused:
                await AsyncClient.connect(daemon.socket, app="mail", token=wrong)
            assert made.token not in str(refused.value) + refused.value.hint
        async with await AsyncClient.connect(daemon.socket, token=made.token) as mail:
            assert mail.server["app"] == f"{ME}/mail"
            await mail.create(name="inbox")
        async with await AsyncClient.connect(daemon.socket, app="mail", token=made.token) as mail:
            assert [info.name for info in await mail.contexts()] == ["inbox"]
        async with daemon.connect("notes") as notes:
            assert await notes.contexts() == []
        async with daemon.connect("mail", admin=True) as also_operator:
            assert len(await also_operator.contexts(everyone=True)) == 1
        (info,) = await operator.apps()
        assert (info.app, info.used.contexts) == (made.app, 1)
        assert info.created is not None and abs(info.created - time.time()) < 60
        await operator.app_remove("mail", contexts="delete")
        async with daemon.connect("mail") as mail:
            assert await mail.contexts() == []
        with pytest.raises(UnknownApp):
            await operator.app_rotate("mail")


@on_a_loop
async def test_live_connections_end_within_a_second_when_their_token_does(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("mail", admin=True) as operator:
        token = (await operator.app_add("mail")).token
        for change in ("app_rotate", "app_remove"):
            client = await AsyncClient.connect(daemon.socket, token=token)
            info = await client.create()
            stream = client.generate(info.id, "hello", max_tokens=900)
            assert await stream.__anext__()
            before = time.monotonic()
            result = await getattr(operator, change)("mail", **({"contexts": "keep"} if change == "app_remove" else {}))
            with pytest.raises(BadToken):
                await stream.done()
            assert time.monotonic() - before < 1
            assert not client.is_open
            with pytest.raises((BadToken, NotServing)):
                await client.ping()
            await client.close()
            if change == "app_rotate":
                with pytest.raises(BadToken):
                    await AsyncClient.connect(daemon.socket, token=token)
                token = result.token
        assert await operator.apps() == []  # the operator's own connection, as the same app, went on


@on_a_loop
async def test_who_took_the_name_before_is_sent_away(tmp_path: Path) -> None:
    """A context that is being made when the app gets its token does not turn up in it later."""
    async with serving(tmp_path) as daemon, daemon.connect("cli", admin=True) as operator:
        squatter = await AsyncClient.connect(daemon.socket, app="mail")
        making = [asyncio.ensure_future(squatter.create(name=f"trap-{i}", system="x" * 500)) for i in range(30)]
        await asyncio.sleep(0)
        try:
            made = await operator.app_add("mail")
        except BadRequest:  # some of them were there already
            made = await operator.app_add("mail", contexts="delete")
        await asyncio.wait_for(asyncio.gather(*making, return_exceptions=True), SOON)
        with pytest.raises((BadToken, NotServing)):
            await squatter.ping()
        await squatter.close()
        async with await AsyncClient.connect(daemon.socket, token=made.token) as mail:
            assert await mail.contexts() == []
            await asyncio.sleep(0.1)
            assert await mail.contexts() == []


@on_a_loop
async def test_rotations_that_race_with_newcomers_let_none_stay_with_an_old_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("cli", admin=True) as operator:
        token = (await operator.app_add("mail")).token
        clients: list[AsyncClient] = []

        async def come() -> None:
            for _ in range(10):
                try:
                    clients.append(await AsyncClient.connect(daemon.socket, token=token))
                except BadToken:
                    await asyncio.sleep(0.001)

        async def rotate() -> str:
            for _ in range(10):
                last = (await operator.app_rotate("mail")).token
            return last

        _, last, *_ = await asyncio.gather(come(), rotate(), come(), come())
        await asyncio.sleep(0.05)
        assert not [client for client in clients if client.is_open]  # they all had the first token
        async with await AsyncClient.connect(daemon.socket, token=last) as client:
            await client.ping()
        for client in clients:
            await client.close()


@pytest.mark.parametrize(
    "quota",
    [
        {"contexts": -1},
        {"contexts": 2**63},
        {"priority": 10},
        {"rate": 0},
        {"rate": "5"},
        {"more": 1},
        5,
        "x",
        [],
        None,
    ],
)
@on_a_loop
async def test_a_quota_that_is_none_is_a_bad_request_that_names_the_field(path: Path, quota: object) -> None:
    async with serving_scripted(path):
        made = await peer(admin_socket(path))
        answer = await made.ask(1, "app_quota", name="mail", quota=quota)
        assert answer["code"] == "bad_request" and "quota" in answer["message"]
        await made.close()


@on_a_loop
async def test_the_most_urgent_priority_of_an_app_holds_at_once_and_goes_before_the_settings(tmp_path: Path) -> None:
    limits = Limits(priority_floor=5, urgent_apps=frozenset({"dialer"}))
    async with (
        serving(tmp_path, limits=limits) as daemon,
        daemon.connect("mail", admin=True) as operator,
        daemon.connect("mail") as mail,
        daemon.connect("dialer") as dialer,
    ):
        await mail.create(name="a")
        await dialer.create(name="a")

        async def priorities(client: AsyncClient) -> list[int]:
            """What a call gets that asks for the most urgent one, and again while it runs."""
            before = max((info.call for info in await client.requests()), default=0)
            stream = client.generate("a", "hello", priority=0, max_tokens=300)
            await anext(stream)
            (info,) = await client.requests(after=before)
            await stream.prioritize(1)
            (then,) = await client.requests(after=before)
            await stream.cancel()
            return [info.priority, then.priority]

        assert (await priorities(mail), await priorities(dialer)) == ([5, 5], [0, 1])
        for app, most, expected in (("mail", 0, [0, 1]), ("mail", 8, [8, 8]), ("dialer", 7, [7, 7])):
            info = await operator.app_quota(app, AppQuota(priority=most))
            assert info.quota.priority == most
            client = mail if app == "mail" else dialer
            assert await priorities(client) == expected
            async with daemon.connect(app) as newcomer:
                assert newcomer.server["limits"]["most_urgent"] == most
        assert await priorities(operator) == [0, 1]  # its own connection, as the same app


# -- the clients


def test_a_client_takes_its_token_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.scripted import serving_in_a_thread

    assert options.TOKEN_VARIABLE == TOKEN_VARIABLE
    with serving_in_a_thread(path) as run:

        async def add(backend: Any, server: Any) -> None:
            backend.apps.tokens["secret"] = AppId("7/mail")

        run(add)
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        for named in ({}, {"app": "mail"}, {"token": "secret"}):
            with Client(path, **named) as client:
                assert client.server["app"] == "7/mail"
        with Client(path, app="notes", token="") as client:
            assert client.server["app"] == f"{ME}/notes"
        with Client(path, app="cli", admin=True) as client:
            assert client.server["app"] == f"{ME}/cli" and client.apps()
        with pytest.raises(BadToken):
            Client(path, app="notes")
        monkeypatch.delenv(TOKEN_VARIABLE)
        with Client(path) as client:
            assert client.server["app"] == f"{ME}/python"
        with pytest.raises(BadRequest, match="token"):
            Client(path, token="x" * 257)
