"""The server: one daemon per socket, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
from pathlib import Path

import pytest

from llmaas.api.daemon_address import admin_socket
from llmaas.api.server import Limits, serve
from llmaas.errors import ConfigError, NotTrusted, SocketInUse
from tests.support.loop import on_a_loop
from tests.support.scripted import ScriptedBackend, collect, peer, serving, until, with_context

STRANGER = 54321
"""A uid that is nobody's."""
SMALL = Limits(max_frame=16384, write_buffer=65536)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "llmaas.sock"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@on_a_loop
async def test_the_socket_is_for_its_user_only_and_goes_with_the_server(path: Path) -> None:
    umask = os.umask(0)
    try:
        async with serving(path):
            names = ("llmaas.sock", "llmaas-admin.sock", "llmaas.sock.lock", "llmaas-admin.sock.lock")
            assert mode(path.parent) == 0o700
            assert {mode(path.with_name(name)) for name in names} == {0o600}
    finally:
        assert os.umask(umask) == 0  # serve() put back what it found
    assert not path.exists() and not admin_socket(path).exists()


@on_a_loop
async def test_an_admin_socket_that_cannot_be_had_gives_the_other_back(path: Path) -> None:
    path.parent.mkdir(0o700)
    admin_socket(path).write_text("precious")
    with pytest.raises(ConfigError, match=r"llmaas-admin\.sock"):
        await serve(ScriptedBackend(), path)
    assert not path.exists()
    admin_socket(path).unlink()
    async with serving(path):
        await (await peer(path)).close()


@on_a_loop
async def test_a_live_socket_is_left_alone(path: Path) -> None:
    async with serving(path):
        with pytest.raises(SocketInUse):
            await serve(ScriptedBackend(), path)
        await (await peer(path)).close()


@on_a_loop
async def test_a_live_socket_of_a_program_that_takes_no_lock_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        with pytest.raises(SocketInUse, match="answers"):
            await serve(ScriptedBackend(), path)
    assert path.is_socket()


@on_a_loop
async def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async with serving(path):
        await (await peer(path)).close()


@on_a_loop
async def test_a_socket_that_another_put_in_its_place_is_not_removed(path: Path) -> None:
    async with serving(path):
        path.rename(path.with_name("old"))  # keeps the inode in use
        path.touch()
    assert path.is_file()


@pytest.mark.parametrize("what", ["file", "directory", "long", "no right", "parent is a file"])
@on_a_loop
async def test_a_path_that_cannot_be_served_is_a_clear_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.sock"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    elif what == "long":
        path = tmp_path / ("x" * 108)
    elif what == "no right":
        path = Path("/proc/llmaas/x.sock")
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "x.sock"
    with pytest.raises(ConfigError, match=re.escape(path.name)) as caught:
        await serve(ScriptedBackend(), path)
    assert caught.value.hint
    if what == "file":
        assert path.read_text() == "precious"


@on_a_loop
async def test_a_new_daemon_may_follow_at_once(path: Path) -> None:
    for _ in range(5):
        async with serving(path) as (_, server):
            await (await peer(path)).close()
            await server.close()
            await server.close()  # twice does no harm


@on_a_loop
async def test_shutdown_tells_every_running_request_and_ends_every_connection(path: Path) -> None:
    async with serving(path) as (backend, server):
        client, idle, mute = await with_context(path), await peer(path), await peer(path, app=None)
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "wait"})
        client.send({"id": 2, "op": "append", "context": "inbox", "prompt": "wait"})
        client.send({"id": 3, "op": "create", "name": "slow"})
        await until(lambda: len(backend.running) == 2 and backend.n_slow == 1)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        backend.gate.set()
        frames = await client.rest()
        ends = [(f["id"], f["code"]) for f in frames if f["type"] == "failed"]
        assert sorted(ends, key=str) == [(i, "shutting_down") for i in (1, 2, 3, None)]
        assert sorted(backend.cancelled) == [1, 2]
        for other in (idle, mute):
            assert [(f["id"], f["code"]) for f in await other.rest()] == [(None, "shutting_down")]
            await other.close()
        await client.close()
        await asyncio.wait_for(closing, 5)
        assert not server.connections
        with pytest.raises(FileNotFoundError):
            await asyncio.open_unix_connection(str(path))


@on_a_loop
async def test_shutdown_does_not_wait_for_a_reader_that_does_not_read(path: Path) -> None:
    async with serving(path, limits=Limits(max_frame=1 << 20, write_buffer=1 << 30)) as (_, server):
        client = await with_context(path)
        client.writer.transport.pause_reading()
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "flood"})
        await asyncio.sleep(0.05)
        await asyncio.wait_for(server.close(), 3)
        client.writer.transport.abort()


@on_a_loop
async def test_shutdown_waits_neither_for_what_never_ends_nor_for_one_after_the_other(path: Path) -> None:
    async with serving(path, limits=Limits(max_frame=1 << 20, write_buffer=1 << 30)) as (backend, server):
        deaf, client = await with_context(path), await peer(path)
        deaf.writer.transport.pause_reading()
        deaf.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "flood"})
        client.send({"id": 1, "op": "create", "name": "slow"})
        await until(lambda: len(server.tasks) == 1)
        began = asyncio.get_running_loop().time()
        await server.close()
        assert asyncio.get_running_loop().time() - began < 1.8
        assert not backend.gate.is_set() and not any(d.info.name == "slow" for d in backend.known.values())
        deaf.writer.transport.abort()
        await client.close()


@pytest.mark.parametrize(
    "bad", [{"max_frame": 100}, {"write_buffer": 16384}, {"max_connections": 0}, {"max_in_flight": 0}, {"hello_s": 0}]
)
def test_limits_that_cannot_work_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**{"max_frame": 16384, "write_buffer": 65536, **bad})  # type: ignore[arg-type]


@on_a_loop
async def test_many_peers_that_come_ask_and_go_leave_nothing_behind(path: Path) -> None:
    async def visit(n: int) -> None:
        client = await peer(path, app=f"app{n}")
        await client.ask(0, "create", name="inbox")
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "count 20" if n % 3 else "wait"})
        if n % 2:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(collect(client, 1), 0.05)
        await client.close()

    async with serving(path) as (backend, server):
        await asyncio.gather(*(visit(n) for n in range(60)))
        await until(lambda: not server.connections and not backend.running and not server.tasks)


# -- the folder, the lock, and who serves: none of them may be another user's ------------------------


@pytest.mark.parametrize("what", ["writable by all", "writable by the group", "a link", "of another user"])
@on_a_loop
async def test_a_folder_that_another_user_can_change_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    if what == "writable by all":
        folder.chmod(0o777)
    elif what == "writable by the group":
        folder.chmod(0o770)
    elif what == "a link":
        folder.rename(tmp_path / "real")
        folder.symlink_to(tmp_path / "real")
    elif os.geteuid() == 0:
        os.chown(folder, STRANGER, STRANGER)
    else:
        pytest.skip("only root can give a folder away")
    with pytest.raises(NotTrusted, match="folder") as caught:
        await serve(ScriptedBackend(), folder / "llmaas.sock")
    assert str(folder) in caught.value.message and caught.value.hint.endswith(".")
    assert not any(folder.iterdir()), "nothing was written there"


@on_a_loop
async def test_a_shared_folder_with_the_sticky_bit_will_do(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o1777)
    async with serving(folder / "llmaas.sock"):
        await (await peer(folder / "llmaas.sock")).close()


@pytest.mark.parametrize("what", ["a link", "a dangling link", "a pipe", "of another user"])
@on_a_loop
async def test_a_lock_that_is_not_a_file_of_ours_is_refused_and_left_alone(path: Path, what: str) -> None:
    path.parent.mkdir(0o700)
    lock, target = path.with_name("llmaas.sock.lock"), path.with_name("precious")
    if what == "a pipe":
        os.mkfifo(lock)
    elif what == "of another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        lock.touch(0o666)
        os.chown(lock, STRANGER, STRANGER)
    else:
        lock.symlink_to(target)
        if what == "a link":
            target.write_text("precious")
    with pytest.raises(NotTrusted, match=r"llmaas\.sock\.lock"):
        await serve(ScriptedBackend(), path)
    assert target.exists() == (what == "a link") and not path.exists()


@on_a_loop
async def test_a_link_in_the_sockets_place_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir(0o700)
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(ConfigError, match="not a socket"):
        await serve(ScriptedBackend(), path)
    assert path.is_symlink() and not path.with_name("elsewhere").exists()
