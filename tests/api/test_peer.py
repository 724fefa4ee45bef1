"""Clients ask the kernel who serves, and tell a stranger nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.api import peer
from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.errors import NotTrusted
from tests.support.loop import on_a_loop
from tests.support.scripted import serving

STRANGER = 54321


@pytest.fixture
def squatter(path: Path) -> Iterator[list[bytes]]:
    """Somebody who serves the path; what he was sent is in the list when the client has gone."""
    got: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                got.append(connection.recv(4096))

        thread = threading.Thread(target=serve)
        thread.start()
        yield got
        thread.join()


def test_a_client_sends_nothing_to_a_daemon_of_another_user(
    path: Path, squatter: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "peer_uid", lambda sock: STRANGER)
    with pytest.raises(NotTrusted, match=f"user {STRANGER}") as caught:
        Client(path, app="mail")
    assert f"--daemon-uid {STRANGER}" in caught.value.hint
    wait_for(squatter)
    assert squatter == [b""]


def test_an_asynchronous_client_sends_nothing_either(
    path: Path, squatter: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "peer_uid", lambda sock: STRANGER)
    with pytest.raises(NotTrusted, match=f"user {STRANGER}"):
        asyncio.run(AsyncClient.connect(path, app="mail"))
    wait_for(squatter)
    assert squatter == [b""]


def wait_for(got: list[bytes]) -> None:
    for _ in range(500):
        if got:
            return
        threading.Event().wait(0.01)


@pytest.mark.parametrize(("uid", "accepted"), [(STRANGER, STRANGER), (0, None), (os.geteuid(), None)])
@on_a_loop
async def test_root_oneself_and_the_user_that_is_named_are_trusted(
    path: Path, uid: int, accepted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(path, uid=os.geteuid()):
        monkeypatch.setattr(peer, "peer_uid", lambda sock: uid)
        async with await AsyncClient.connect(path, app="mail", daemon_uid=accepted) as client:
            await client.ping()
        await asyncio.to_thread(lambda: Client(path, app="mail", daemon_uid=accepted).close())


_SQUATTER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_kernel_tells_the_user_of_a_real_squatter() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which other users cannot enter
        path = Path(folder, "s")
        path.parent.chmod(0o777)
        squatter = subprocess.Popen(
            ["/usr/bin/env", "python3", "-c", _SQUATTER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            user=STRANGER,
            cwd="/",
        )
        with squatter:
            assert squatter.stdout is not None and squatter.stdout.readline() == b"up\n"
            with pytest.raises(NotTrusted, match=f"user {STRANGER}"):
                Client(path, app="mail")
            squatter.communicate()
