"""Sockets that a service manager hands over: here a shell, which passes them on as systemd does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from llmaas.api.activation import HandedOver
from llmaas.api.client import Client
from tests.cli.conftest import clean_environ

SERVE = '"$0" -W error -m llmaas serve --socket "$1" --data-dir "$2" --cells 1024'
LAUNCH = f"LISTEN_PID=$$ LISTEN_FDS=2 exec {SERVE} 3<&%d 4<&%d"


@contextmanager
def listening(*paths: Path) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        sockets = []
        for path in paths:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            sockets.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            sockets[-1].bind(str(path))
            path.chmod(0o600)
            sockets[-1].listen()
        yield sockets


def launched(home: Path, sockets: list[socket.socket]) -> subprocess.Popen[str]:
    fds = [sock.fileno() for sock in sockets]
    command = ["bash", "-c", LAUNCH % tuple(fds), sys.executable, home / "run" / "d.sock", home / "data"]
    with (home / "log").open("a") as log:
        return subprocess.Popen(command, env=clean_environ(home), pass_fds=fds, stderr=log, text=True)


def test_clients_wait_while_the_daemon_starts_and_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "d.sock"
    with listening(path, path.with_name("d-admin.sock")) as sockets:
        for _ in range(2):
            models: list[object] = []

            def ask(models: list[object] = models) -> None:
                with Client(path, app="early", timeout=60) as client:
                    models.append(client.server["model"])

            early = threading.Thread(target=ask)
            early.start()  # before there is a daemon
            daemon = launched(tmp_path, sockets)
            early.join(90)
            assert models, (tmp_path / "log").read_text()
            with Client(path, app="operator", admin=True) as client:
                client.limit(None, None)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(60) == 0
            assert path.is_socket(), "it is the manager's, and the next daemon gets it"
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log and "service manager" not in log, log


def test_a_socket_elsewhere_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "run" / "d.sock"
    with listening(tmp_path / "run" / "other.sock", tmp_path / "run" / "more.sock") as sockets:
        daemon = launched(tmp_path, sockets)
        late = threading.Event()
        while "ready: " not in (tmp_path / "log").read_text() and daemon.poll() is None:
            late.wait(0.05)
        with Client(path, app="a", timeout=60):
            pass
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0 and not path.exists()
    log = (tmp_path / "log").read_text()
    assert f"socket {tmp_path / 'run' / 'other.sock'} is no socket of the daemon's" in log


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"},
        {"LISTEN_FDS": "2"},
    ],
)
def test_variables_for_others_and_nonsense_hand_nothing_over(environ: dict[str, str], tmp_path: Path) -> None:
    found = dict(environ)
    handed = HandedOver(found)
    assert handed.take(tmp_path) is None and handed.left() == [] and found == {}
