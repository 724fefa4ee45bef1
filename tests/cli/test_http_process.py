"""``llmaas http``, alone and beside a daemon that keeps it running, with the real model."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llmaas.cli.doctor.http import check_http
from llmaas.cli.http_process import require_packages
from llmaas.errors import ConfigError
from llmaas.socket_place import http_socket
from tests.cli.conftest import COMMAND, Daemon, Run, clean_environ

SOON = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def until(true: Callable[[], bool]) -> None:
    late = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < late
        time.sleep(0.05)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(json.load(reply)["status"] == "ok")
    except (urllib.error.URLError, ConnectionError):
        return False


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def with_http(tmp_path: Path, port: int) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, more=("--http", f"127.0.0.1:{port}"))
    daemon.start()
    yield daemon
    daemon.stop(signal.SIGKILL)


def test_the_daemon_keeps_it_running_and_ends_it(with_http: Daemon, port: int) -> None:
    until(lambda: healthy(port))
    assert with_http.process is not None
    (first,) = children(with_http.process)
    first.kill()
    until(lambda: healthy(port))
    (second,) = children(with_http.process)
    assert second.pid != first.pid
    assert "the HTTP process ended (-9)" in with_http.log
    assert with_http.stop() == 0
    assert not second.is_running()
    assert not http_socket(with_http.socket).exists()
    assert "Traceback" not in with_http.log


def test_it_ends_with_a_daemon_that_is_killed(with_http: Daemon, port: int) -> None:
    until(lambda: healthy(port))
    assert with_http.process is not None
    (http,) = children(with_http.process)
    with_http.stop(signal.SIGKILL)
    until(lambda: not http.is_running() or http.status() == psutil.STATUS_ZOMBIE)


def test_where_http_is_off_there_is_no_process(daemon: Daemon, llmaas: Run) -> None:
    assert daemon.process is not None
    assert children(daemon.process) == []
    assert not http_socket(daemon.socket).exists()
    assert "HTTP is off" in llmaas("doctor", "--socket", str(daemon.socket)).stdout


def test_alone_it_serves_a_daemon_that_runs(daemon: Daemon, port: int, llmaas: Run, tmp_path: Path) -> None:
    flags = ["http", "--socket", str(daemon.socket), "--http", f"localhost:{port}"]
    process = subprocess.Popen([*COMMAND, *flags], env=clean_environ(tmp_path), stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: healthy(port))
        assert "HTTP is served on" in llmaas("doctor", "--socket", str(daemon.socket)).stdout
        second = llmaas(*flags)
        assert second.returncode == 1 and "another daemon holds" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 0
    finally:
        process.kill()
        _, log = process.communicate()
    assert "Traceback" not in log


def test_bad_addresses_are_told_before_the_model_is_loaded(llmaas: Run) -> None:
    for command in ("serve", "http"):
        done = llmaas(command, "--http", "0.0.0.0:80")
        assert done.returncode == 2 and "127.0.0.1" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = llmaas("http", "--http", "{}:{}".format(*taken.getsockname()))
        assert done.returncode == 2 and "cannot serve HTTP" in done.stderr
    assert "http = unix" in llmaas("serve", "--show-config", "--http").stdout


def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.cli.http_process.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="uvicorn, starlette, msgspec") as told:
        require_packages()
    assert "llmaas[http]" in told.value.hint
    for address, level in ((None, "ok"), ("unix", "fail")):
        (finding,) = check_http(address, Path("/x"), False)
        assert (finding.level, finding.hint[:3]) == (level, "pip")
