"""Who may ask what of the daemon."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llmaas.api.server import serve
from tests.support.loop import on_a_loop
from tests.support.scripted import HELLO, ScriptedBackend, peer, serving, with_context


@on_a_loop
async def test_an_app_sees_its_own_contexts_and_the_daemons_user_may_see_all(path: Path) -> None:
    async with serving(path):
        mail, notes = await with_context(path), await peer(path, app="notes")
        context = (await mail.ask(1, "list"))["result"][0]["id"]
        assert (await notes.ask(1, "list"))["result"] == []
        assert (await notes.ask(2, "show", context=context))["code"] == "unknown_context"
        assert (await notes.ask(3, "delete", context=context))["code"] == "unknown_context"
        (seen,) = (await notes.ask(4, "list", everyone=True))["result"]
        assert seen["app"] == f"{os.getuid()}/mail"
        assert (await notes.ask(5, "show", context=context, everyone=True))["type"] == "done"
        assert (await notes.ask(6, "delete", context=context, everyone=True))["type"] == "done"
        assert (await mail.ask(2, "list"))["result"] == []
        await mail.close()
        await notes.close()


@pytest.mark.parametrize(("uid", "allowed"), [(0, True), (os.getuid(), True), (os.getuid() + 4242, False)])
@on_a_loop
async def test_everyone_and_budgets_are_for_root_and_the_daemons_user(path: Path, uid: int, allowed: bool) -> None:
    async with serving(path, uid=uid):
        client = await with_context(path)
        assert (await client.ask(1, "list"))["result"][0]["app"] == f"{uid}/mail"
        for op, fields in (("list", {}), ("show", {"context": "inbox"}), ("delete", {"context": "inbox"})):
            reply = await client.ask(2, op, everyone=True, **fields)
            assert reply.get("code") == (None if allowed else "forbidden"), op
        assert len((await client.ask(3, "list"))["result"]) == (0 if allowed else 1)
        reply = await client.ask(4, "budget", pool_bytes=7)
        assert reply.get("code") == (None if allowed else "forbidden")
        assert not allowed or reply["result"]["pool_bytes"]["budget"] == 7
        await client.close()


@pytest.mark.parametrize(("uid", "allowed"), [(0, True), (os.geteuid(), True), (4242, False)])
@on_a_loop
async def test_adapters_are_registered_by_root_and_the_daemons_user_and_seen_by_all(
    path: Path, uid: int, allowed: bool
) -> None:
    async with serving(path, uid=uid) as (backend, _):
        backend.adapters.known["red"] = "/red"
        client = await with_context(path)
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
