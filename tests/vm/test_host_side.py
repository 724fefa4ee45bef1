"""Clients of a daemon behind the line: they notice no difference."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.api.daemon_address import admin_socket
from llmaas.errors import Cancelled, Forbidden, LlmaasError, NotServing, ShuttingDown, SocketInUse, UnknownContext
from llmaas.records import Message
from llmaas.vm.host_side import MOST_WAITING
from tests.support.daemon import Peer, answer_to, ask, serving
from tests.support.loop import on_a_loop
from tests.support.vm_line import served_through

SOON = 20.0
HELLO = [Message("user", "hello")]
OTHER = os.geteuid() + 4242


def client_of(root: Path, app: str = "mail", **options: Any) -> Any:
    """``async with``: a client of a daemon behind a line."""

    @asynccontextmanager
    async def made() -> AsyncIterator[AsyncClient]:
        async with (
            serving(root / "guest") as daemon,
            served_through(daemon.socket, root / "h.sock", **options),
            await AsyncClient.connect(root / "h.sock", app=app) as client,
        ):
            yield client

    return made()


@on_a_loop
async def test_a_conversation_a_cancellation_and_an_error(tmp_path: Path) -> None:
    async with client_of(tmp_path) as client:
        context = await client.create(name="notes")
        assert await ask(client, context.id, "hello") == answer_to("hello")
        assert await ask(client, context.id, "go on") == answer_to("hello", "go on")
        stream = client.generate(context.id, HELLO, max_tokens=400)
        await anext(aiter(stream))
        await stream.cancel()
        with pytest.raises(Cancelled):
            await stream.done()
        with pytest.raises(UnknownContext):
            await client.show("nobody")
        assert len((await client.show(context.id)).messages) >= 5


@on_a_loop
async def test_long_texts_pass_and_many_clients_at_once(tmp_path: Path) -> None:
    """More than a window in either direction, and more connections than one app needs."""
    text = "It was the best of times, it was the worst of times. " * 9000
    async with serving(tmp_path / "guest") as daemon, served_through(daemon.socket, tmp_path / "h.sock"):

        async def talk(name: str) -> None:
            async with await AsyncClient.connect(tmp_path / "h.sock", app=name) as client:
                assert await ask(client, (await client.create(name="c")).id, name) == answer_to(name)

        async with await AsyncClient.connect(tmp_path / "h.sock", app="long") as client:
            with pytest.raises(LlmaasError, match="tokens"):
                await ask(client, (await client.create(name="c")).id, text)
        await asyncio.wait_for(asyncio.gather(*(talk(f"app-{i}") for i in range(40))), SOON)


@pytest.mark.parametrize("uid", [os.geteuid(), OTHER])
@on_a_loop
async def test_the_kernel_of_the_host_says_whose_app_it_is(tmp_path: Path, uid: int) -> None:
    def said() -> object:
        with Peer(tmp_path / "h.sock") as peer:
            return peer.hello("mail")["app"]

    async with client_of(tmp_path, uid_of=lambda sock: uid):
        assert await asyncio.to_thread(said) == f"{uid}/mail"


@pytest.mark.parametrize("uid", [os.geteuid(), OTHER])
@on_a_loop
async def test_the_operator_is_the_owner_on_the_admin_socket_and_nobody_else(tmp_path: Path, uid: int) -> None:
    async with (
        client_of(tmp_path, uid_of=lambda sock: uid),
        await AsyncClient.connect(tmp_path / "h.sock", app="cli", admin=True) as client,
    ):
        if uid == OTHER:
            with pytest.raises(Forbidden):
                await client.contexts(everyone=True)
        else:
            assert await client.contexts(everyone=True) == []


@on_a_loop
async def test_who_says_another_user_or_nonsense_is_told_so_and_does_not_reach_the_guest(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "guest") as daemon,
        served_through(daemon.socket, tmp_path / "h.sock") as guest,
    ):
        for frame, code in (
            ({"op": "hello", "version": 1, "app": "mail", "uid": 0}, "forbidden"),
            ({"op": "hello", "version": 9, "app": "mail"}, "version_mismatch"),
            ({"op": "stats", "id": 1}, "bad_request"),
            ("no map", "malformed_frame"),
            ({"op": "hello", "version": 1, "app": "x" * 20000}, "frame_too_large"),
        ):
            said = await asyncio.to_thread(_refused, tmp_path / "h.sock", frame)
            assert said == code, frame
        assert guest.n_open == 0


def _refused(socket: Path, frame: object) -> object:
    """The code with which a connection is refused, after which it ends."""
    with Peer(socket) as peer:
        peer.send(frame)
        code = peer.receive()["code"]
        assert peer.hung_up()
        return code


@on_a_loop
async def test_who_says_nothing_is_sent_away_and_takes_nobodys_place(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "guest") as daemon,
        served_through(daemon.socket, tmp_path / "h.sock", hello_s=0.2) as guest,
    ):
        silent = [sockets.socket(sockets.AF_UNIX) for _ in range(2 * MOST_WAITING)]
        for each in silent:
            each.setblocking(False)
            await asyncio.get_running_loop().sock_connect(each, str(tmp_path / "h.sock"))
        async with await AsyncClient.connect(tmp_path / "h.sock", app="mail") as client:
            await client.stats()
            for each in silent:
                while await asyncio.wait_for(asyncio.get_running_loop().sock_recv(each, 4096), SOON):
                    pass  # those that gave way are told nothing, the others that they were too late
                each.close()
            assert guest.n_open == 1


@pytest.mark.parametrize("nbytes", [100_000, 600_000], ids=["a-little", "much"])
@on_a_loop
async def test_who_does_not_read_the_end_holds_no_socket(tmp_path: Path, nbytes: int) -> None:
    """The daemon has ended the connection, and more was written than the kernel takes, or than the line does."""

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(bytes(nbytes))
        writer.close()

    server = await asyncio.start_unix_server(daemon, tmp_path / "guest-admin.sock")
    async with served_through(tmp_path / "guest.sock", tmp_path / "h.sock", unread_s=0.5) as guest:
        before = n_files()
        peers = [Peer(tmp_path / "h.sock") for _ in range(5)]
        for peer in peers:
            peer.send({"op": "hello", "version": 1, "app": "deaf"})
        for peer in peers:
            await asyncio.to_thread(peer.sock.recv, 1)
        await until(lambda: guest.n_open == 0 and n_files() <= before + len(peers))
        for peer in peers:
            peer.sock.close()
    server.close()
    await server.wait_closed()


def n_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Callable[[], bool]) -> None:
    late = asyncio.get_running_loop().time() + SOON
    while not condition():
        assert asyncio.get_running_loop().time() < late
        await asyncio.sleep(0.02)


@on_a_loop
async def test_clients_learn_that_the_guest_has_gone(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "guest") as daemon,
        served_through(daemon.socket, tmp_path / "h.sock", until_end=False) as guest,
        await AsyncClient.connect(tmp_path / "h.sock", app="mail") as client,
    ):
        context = await client.create(name="notes")
        stream = client.generate(context.id, HELLO, max_tokens=400)
        await anext(aiter(stream))
        guest.end()
        with pytest.raises(LlmaasError):
            await asyncio.wait_for(stream.done(), SOON)
        with pytest.raises(ShuttingDown):
            await asyncio.wait_for(AsyncClient.connect(tmp_path / "h.sock", app="mail"), SOON)
    assert not (tmp_path / "h.sock").exists() and not admin_socket(tmp_path / "h.sock").exists()
    with pytest.raises(NotServing):
        await asyncio.to_thread(Client, tmp_path / "h.sock", app="mail")


@on_a_loop
async def test_a_daemon_that_takes_no_connection_ends_the_clients_and_no_more(tmp_path: Path) -> None:
    async with served_through(tmp_path / "nobody.sock", tmp_path / "h.sock") as guest:
        with pytest.raises(LlmaasError):
            await asyncio.wait_for(AsyncClient.connect(tmp_path / "h.sock", app="mail"), SOON)
        assert guest.n_open == 0


@on_a_loop
async def test_a_socket_that_a_daemon_serves_is_not_taken(tmp_path: Path) -> None:
    async with serving(tmp_path / "guest") as daemon:
        with pytest.raises(SocketInUse):
            async with served_through(daemon.socket, daemon.socket):
                pass
