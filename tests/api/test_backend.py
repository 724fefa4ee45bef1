"""Who may ask what of the daemon."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llmaas.api.caller import Caller, Door, caller_of
from llmaas.api.daemon_address import admin_socket
from llmaas.api.server import Limits, serve
from llmaas.records import AppId
from tests.support.loop import on_a_loop
from tests.support.scripted import HELLO, ScriptedApps, ScriptedBackend, peer, serving, until, with_context

DOORS = [
    (Door.ADMIN, 0, True),
    (Door.ADMIN, os.geteuid(), True),
    (Door.ADMIN, os.geteuid() + 4242, False),
    (Door.APPS, 0, False),
    (Door.APPS, os.geteuid(), False),
    (Door.APPS, 4242, False),
]


def at(door: Door, path: Path) -> Path:
    return admin_socket(path) if door is Door.ADMIN else path


@pytest.mark.parametrize(("door", "uid", "is_operator"), DOORS)
def test_the_operator_is_root_or_the_daemons_user_on_the_admin_socket(door: Door, uid: int, is_operator: bool) -> None:
    assert caller_of(uid, "mail", door, tokens=ScriptedApps()) == Caller(AppId(f"{uid}/mail"), is_operator)


URGENT = Limits(priority_floor=5, urgent_apps=frozenset({"phone", "7/dialer"}))


@pytest.mark.parametrize(
    ("door", "uid", "app", "most_urgent"),
    [
        (Door.APPS, os.geteuid(), "mail", 5),
        (Door.APPS, os.geteuid(), "phone", 0),
        (Door.APPS, 7, "phone", 0),
        (Door.APPS, 7, "dialer", 0),
        (Door.APPS, 8, "dialer", 5),
        (Door.ADMIN, os.geteuid(), "mail", 0),
        (Door.ADMIN, os.geteuid() + 4242, "mail", 5),
    ],
)
@on_a_loop
async def test_only_apps_that_were_granted_it_and_the_operator_are_more_urgent_than_the_floor(
    path: Path, door: Door, uid: int, app: str, most_urgent: int
) -> None:
    assert caller_of(uid, app, door, URGENT, tokens=ScriptedApps()).most_urgent == most_urgent
    async with serving(path, limits=URGENT, uid=uid) as (backend, _):
        client = await with_context(at(door, path), app=app)
        for i, wanted in enumerate((0, 3, 5, 9)):
            client.send({"id": 10 + i, "op": "generate", "context": "inbox", "prompt": "wait", "priority": wanted})
            client.send({"id": 20 + i, "op": "prioritize", "request": 10 + i, "priority": wanted})
        await until(lambda: len(backend.priorities) == 4)
        allowed = [max(most_urgent, wanted) for wanted in (0, 3, 5, 9)]
        assert [terms.priority for terms in backend.terms] == allowed
        assert [priority for _, priority in backend.priorities] == allowed
        assert backend.operators == [caller_of(uid, app, door, tokens=ScriptedApps()).is_operator] * 4
        await client.close()


@on_a_loop
async def test_an_app_sees_its_own_contexts_and_the_operator_may_see_all(path: Path) -> None:
    async with serving(path):
        mail, notes = await with_context(path), await peer(path, app="notes")
        context = (await mail.ask(1, "list"))["result"][0]["id"]
        assert (await notes.ask(1, "list"))["result"] == []
        assert (await notes.ask(2, "show", context=context))["code"] == "unknown_context"
        assert (await notes.ask(3, "delete", context=context))["code"] == "unknown_context"
        refused = await notes.ask(4, "list", everyone=True)
        assert refused["code"] == "forbidden" and "llmaas-admin.sock" in refused["hint"]
        operator = await peer(admin_socket(path), app="notes")
        (seen,) = (await operator.ask(4, "list", everyone=True))["result"]
        assert seen["app"] == f"{os.getuid()}/mail"
        assert (await operator.ask(5, "show", context=context, everyone=True))["type"] == "done"
        assert (await operator.ask(6, "delete", context=context, everyone=True))["type"] == "done"
        assert (await mail.ask(2, "list"))["result"] == []
        for client in (mail, notes, operator):
            await client.close()


@pytest.mark.parametrize(("door", "uid", "allowed"), DOORS)
@on_a_loop
async def test_everyone_limits_and_budgets_are_for_the_operator(
    path: Path, door: Door, uid: int, allowed: bool
) -> None:
    async with serving(path, uid=uid):
        client = await with_context(at(door, path))
        assert (await client.ask(1, "list"))["result"][0]["app"] == f"{uid}/mail"
        for op, fields in (("list", {}), ("show", {"context": "inbox"}), ("delete", {"context": "inbox"})):
            reply = await client.ask(2, op, everyone=True, **fields)
            assert reply.get("code") == (None if allowed else "forbidden"), op
        assert len((await client.ask(3, "list"))["result"]) == (0 if allowed else 1)
        for op, fields in (("budget", {"pool_bytes": 7}), ("budget", {}), ("limit", {"rate": 5.0})):
            reply = await client.ask(4, op, **fields)
            assert reply.get("code") == (None if allowed else "forbidden"), op
        await client.close()


@pytest.mark.parametrize(("door", "uid", "allowed"), DOORS)
@on_a_loop
async def test_adapters_are_registered_by_the_operator_and_seen_by_all(
    path: Path, door: Door, uid: int, allowed: bool
) -> None:
    async with serving(path, uid=uid) as (backend, _):
        backend.adapters.known["red"] = "/red"
        client = await with_context(at(door, path))
        for op, fields in (
            ("adapter_add", {"name": "blue", "path": "/blue"}),
            ("adapter_remove", {"name": "blue"}),
        ):
            reply = await client.ask(1, op, **fields)
            assert reply.get("code") == (None if allowed else "forbidden"), op
        assert backend.adapters.known == {"red": "/red"}
        (seen,) = (await client.ask(2, "adapters"))["result"]
        assert (seen["name"], seen["path"]) == ("red", "/red" if allowed else "")
        created = await client.ask(3, "create", name="other", adapter="red")
        assert created["result"]["adapter"] == "red"
        await client.close()


@on_a_loop
async def test_a_peer_whom_the_kernel_does_not_know_is_sent_away(path: Path) -> None:
    def unknown(_: socket.socket) -> int:
        raise OSError(95, "Operation not supported")

    server = await serve(ScriptedBackend(), path, uid_of=unknown)
    client = await peer(path, app=None)
    client.send(HELLO)
    assert [f["code"] for f in await client.rest()] == ["forbidden"]
    await client.close()
    await server.close()
