"""Connections that the operator makes on behalf of an app."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.caller import Caller, Door, caller_of
from llmaas.api.client import Client
from llmaas.api.daemon_address import admin_socket
from llmaas.api.server import Limits
from llmaas.api.wire import Frame
from llmaas.errors import BadRequest, Forbidden
from llmaas.records import AppId
from tests.support.loop import on_a_loop
from tests.support.scripted import HELLO, Peer, ScriptedApps, peer, serving, serving_in_a_thread, until

NONE = ScriptedApps()
STRANGER = os.geteuid() + 4242


async def delegated(path: Path, app: str, uid: object) -> tuple[Peer, Frame]:
    """A connection to the socket ``path`` whose hello has ``uid``, and the daemon's answer."""
    made = await peer(path, app=None)
    made.send({**HELLO, "app": app, "uid": uid})
    answer = await made.frame()
    assert answer is not None
    return made, answer


def test_the_caller_is_that_app_and_not_the_operator() -> None:
    limits = Limits(priority_floor=5, urgent_apps=frozenset({"7/dialer"}))
    mail = caller_of(os.geteuid(), "mail", Door.ADMIN, limits, tokens=NONE, on_behalf_of=7)
    dialer = caller_of(os.geteuid(), "dialer", Door.ADMIN, limits, tokens=NONE, on_behalf_of=7)
    assert mail == Caller(AppId("7/mail"), False, 5) and dialer == Caller(AppId("7/dialer"), False, 0)
    # Not even on its own behalf, or root's.
    for uid in (os.geteuid(), 0):
        assert not caller_of(os.geteuid(), "mail", Door.ADMIN, limits, tokens=NONE, on_behalf_of=uid).is_operator


@pytest.mark.parametrize("uid", [os.geteuid(), STRANGER])
def test_only_the_operator_may(uid: int) -> None:
    doors = [Door.APPS] if uid == os.geteuid() else [Door.APPS, Door.ADMIN]
    for door in doors:
        with pytest.raises(Forbidden, match="uid"):
            caller_of(uid, "mail", door, tokens=NONE, on_behalf_of=7)


@on_a_loop
async def test_it_is_forbidden_on_the_apps_socket(path: Path) -> None:
    async with serving(path):
        made, answer = await delegated(path, "mail", 7)
        assert answer["type"] == "failed" and answer["code"] == "forbidden"
        assert await made.rest() == []
        await made.close()


@on_a_loop
async def test_a_stranger_on_the_operators_socket_is_refused(path: Path) -> None:
    async with serving(path, uid=STRANGER):
        made, answer = await delegated(admin_socket(path), "mail", 7)
        assert answer["code"] == "forbidden"
        await made.close()


@pytest.mark.parametrize("uid", [-1, 2**32, 2**63, 1.0, "7", True, [7]])
@on_a_loop
async def test_a_uid_that_is_none_is_a_bad_hello(path: Path, uid: object) -> None:
    async with serving(path):
        made, answer = await delegated(admin_socket(path), "mail", uid)
        assert answer["code"] == "bad_request" and "uid" in answer["message"]
        assert await made.rest() == []
        await made.close()


@pytest.mark.parametrize("uid", [0, 1000, 2**32 - 1])
@on_a_loop
async def test_its_contexts_are_that_apps_and_it_has_no_rights_of_the_operator(path: Path, uid: int) -> None:
    async with serving(path) as (backend, _):
        made, answer = await delegated(admin_socket(path), "mail", uid)
        assert answer["type"] == "hello"
        assert (await made.ask(1, "create", name="inbox"))["result"]["app"] == f"{uid}/mail"
        for op, fields in (
            ("limit", {}),
            ("budget", {}),
            ("list", {"everyone": True}),
            ("adapter_remove", {"name": "x"}),
        ):
            refused = await made.ask(2, op, **fields)
            assert refused["code"] == "forbidden", op
        made.send({"id": 3, "op": "generate", "context": "inbox", "prompt": "count 1"})
        await until(lambda: backend.operators == [False])
        await made.close()


@on_a_loop
async def test_it_takes_the_apps_places_and_none_of_the_operators(path: Path) -> None:
    async with serving(path, limits=Limits(app_connections=40, max_connections=60)) as (_, server):
        many = [(await delegated(admin_socket(path), "mail", 7))[0] for _ in range(40)]
        late, answer = await delegated(admin_socket(path), "mail", 7)
        assert answer["code"] == "busy" and "7/mail" in answer["message"]
        operators = [await peer(admin_socket(path)) for _ in range(16)]
        assert (await operators[-1].ask(1, "stats"))["type"] == "done"
        # Others get places of this app, which has most.
        others = [await peer(path, app=f"name-{i}") for i in range(25)]
        assert [f["code"] for f in await many[0].rest()] == ["busy"]
        for each in (*many, *operators, *others, late):
            await each.close()
        await until(lambda: not server.connections)


@on_a_loop
async def test_requests_behind_the_hello_are_served_and_large_ones_count_as_the_apps(path: Path) -> None:
    async with serving(path) as (backend, server):
        made = await peer(admin_socket(path), app=None)
        pings: list[Frame] = [{"id": i, "op": "ping"} for i in range(50)]
        made.send({**HELLO, "uid": 7}, *pings)
        hello = await made.frame()
        assert hello is not None and hello["type"] == "hello"
        assert [(await made.frame() or {})["id"] for _ in pings] == list(range(50))
        await made.ask(60, "create", name="inbox")
        large = [{"role": "user", "content": "x" * 100_000}, {"role": "user", "content": "wait"}]
        made.send({"id": 61, "op": "generate", "context": "inbox", "messages": large})
        await until(lambda: bool(backend.running))
        assert server.shares[Door.APPS].buffers.held("7/mail") > 100_000
        assert server.shares[Door.ADMIN].buffers.used == 0
        await made.close()
        await until(lambda: not server.connections and not server.shares[Door.APPS].buffers.used)


@on_a_loop
async def test_the_asynchronous_client(path: Path) -> None:
    async with serving(path):
        async with await AsyncClient.connect(path, app="mail", admin=True, on_behalf_of=7) as client:
            assert (await client.create(name="inbox")).app == "7/mail"
        with pytest.raises(Forbidden):
            await AsyncClient.connect(path, app="mail", on_behalf_of=7)
        with pytest.raises(BadRequest, match="uid"):
            await AsyncClient.connect(path, app="mail", admin=True, on_behalf_of=-1)


def test_the_blocking_client(path: Path) -> None:
    with serving_in_a_thread(path):
        with Client(path, app="mail", admin=True, on_behalf_of=7) as client:
            assert client.create(name="inbox").app == "7/mail"
        with pytest.raises(Forbidden):
            Client(path, app="mail", on_behalf_of=7)
        with pytest.raises(BadRequest, match="uid"):
            Client(path, app="mail", admin=True, on_behalf_of=2**32)
