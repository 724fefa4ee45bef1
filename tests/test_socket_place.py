"""Daemon and clients come to the same socket, whatever their environments have and lack."""

from __future__ import annotations

import os
import socket
from itertools import product
from pathlib import Path

import pytest

from llmaas.socket_place import socket_in_use, socket_places

UID = os.getuid()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with a /tmp, short enough for a socket's path."""
    (tmp_path / "tmp").mkdir()
    return tmp_path


def served(place: Path) -> socket.socket:
    place.parent.mkdir(parents=True, exist_ok=True)
    serving = socket.socket(socket.AF_UNIX)
    serving.bind(str(place))
    return serving


def environments(root: Path) -> list[dict[str, str]]:
    """Of a session, a service, a cron job, and a session with a TMPDIR of its own."""
    runtime, tmp = {"XDG_RUNTIME_DIR": str(root / "run/user" / str(UID))}, {"TMPDIR": str(root / "tmp" / "user")}
    return [runtime, {}, tmp, runtime | tmp]


@pytest.mark.parametrize(("of_daemon", "of_client", "session"), [*product(range(4), range(4), (True, False))])
def test_a_client_finds_the_daemon(root: Path, of_daemon: int, of_client: int, session: bool) -> None:
    """``session``: whether systemd has made the user's folder before the daemon starts; the client has a session."""
    user = root / "run/user" / str(UID)
    if session or of_daemon in (0, 3):
        user.mkdir(parents=True)
    place = socket_places(environments(root)[of_daemon], root)[0]
    with served(place):
        user.mkdir(parents=True, exist_ok=True)
        assert socket_in_use(environments(root)[of_client], root) == place


def test_without_a_daemon_both_name_the_same_place(root: Path) -> None:
    assert socket_in_use({}, root) == socket_places({}, root)[0] == root / "tmp" / f"llmaas-{UID}" / "llmaas.sock"


def test_a_system_without_tmp_has_tmpdir(tmp_path: Path) -> None:
    assert socket_places({"TMPDIR": "/t"}, tmp_path) == [Path(f"/t/llmaas-{UID}/llmaas.sock")]


def test_a_relative_runtime_folder_does_not_count(root: Path) -> None:
    assert socket_places({"XDG_RUNTIME_DIR": "run"}, root) == socket_places({}, root)
