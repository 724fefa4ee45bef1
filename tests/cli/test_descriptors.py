"""A real daemon that may have few files open, or has none left."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.client import Client
from llmaas.errors import Busy, LlmaasError
from llmaas.records import Message
from tests.cli.conftest import Daemon

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
HI = [Message("user", "hi")]
SOON = 20.0
MOST_LOG = 20_000
"""Bytes that the daemon logs."""


@contextmanager
def running(root: Path, soft: int, hard: int) -> Iterator[Daemon]:
    daemon = Daemon(root, limits={resource.RLIMIT_NOFILE: (soft, hard)})
    daemon.start()
    try:
        yield daemon
    finally:
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log
        assert len(daemon.log) < MOST_LOG


def files(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))  # noqa: PTH208


def outcome(do: Callable[..., Any], *args: Any, **options: Any) -> str:
    """How a request ended: "done", or the code of its error. It must end soon."""
    began = time.monotonic()
    try:
        result = do(*args, **options)
        if do.__name__ == "generate":
            _ = result.done
        return "done"
    except LlmaasError as error:
        return error.code
    finally:
        assert time.monotonic() - began < SOON


@LINUX
def test_a_daemon_with_few_files_takes_fewer_connections_and_serves_these(tmp_path: Path) -> None:
    with running(tmp_path, 64, 160) as daemon, ExitStack() as open_:
        assert "160 files may be open: 36 connections at most" in daemon.log
        clients = []
        for i in range(60):
            try:
                clients.append(open_.enter_context(Client(daemon.socket, app=f"app-{i}")))
                clients[-1].ping()
            except Busy:
                break
        assert files(daemon) < 160
        operator = open_.enter_context(Client(daemon.socket, app="operator", admin=True))
        assert operator.stats()["contexts"] == 0
        last = clients[-1]
        assert outcome(last.create, name="x") == "done"
        assert outcome(last.generate, "x", HI, max_tokens=4) == "done"
        for round_ in range(3):  # many more are refused or let go of, again and again, and nobody else is
            for _ in range(30):
                try:
                    Client(daemon.socket, app=f"brief-{round_}").close()
                except LlmaasError as error:
                    assert error.code in ("busy", "not_serving")
            assert operator.stats()["contexts"] == 1


@LINUX
def test_a_daemon_that_may_have_too_few_files_says_so(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, limits={resource.RLIMIT_NOFILE: (70, 70)})
    with pytest.raises(pytest.fail.Exception, match="70 files open, and needs 128 at least"):
        daemon.start()
    assert "LimitNOFILE" in daemon.log


@LINUX
def test_every_request_of_a_daemon_without_files_gets_its_one_reply(tmp_path: Path) -> None:
    with running(tmp_path, 1024, 1024) as daemon, ExitStack() as open_:
        client = open_.enter_context(Client(daemon.socket, app="app"))
        operator = open_.enter_context(Client(daemon.socket, app="app", admin=True))
        for name in ("x", "y", "z"):
            client.create(name=name, system="Be brief.")
            _ = client.generate(name, HI, max_tokens=4).done
        assert daemon.process is not None
        pid = daemon.process.pid
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 1024))  # below what is open: nothing more can be
        began = time.monotonic()
        ends = {
            "create": outcome(client.create, name="new"),
            "generate": outcome(client.generate, "x", [Message("user", "Tell me a story. " * 20)], max_tokens=80),
            "append": outcome(client.append, "y", HI),
            "fork": outcome(client.fork, "x", name="copy"),
            "truncate": outcome(client.truncate, "y", n_messages=1),
            "migrate": outcome(client.migrate, "y"),
            "show": outcome(client.show, "x"),
            "list": outcome(client.contexts),
            "hint": outcome(client.hint, "z"),
            "delete": outcome(client.delete, "z"),
            "adapter_add": outcome(operator.adapter_add, "a", Path(__file__)),
            "stats": outcome(operator.stats),
            "budget": outcome(operator.budget, pool_bytes=1 << 20),
        }
        with pytest.raises(LlmaasError):
            Client(daemon.socket, app="late", timeout=1.0).ping()
        assert set(ends.values()) <= {"done", "store_failed", "disk_full", "adapter_unreadable"}, ends
        assert ends["list"] == ends["show"] == ends["generate"] == "done", ends
        while time.monotonic() - began < 5:
            client.ping()
            time.sleep(0.05)
        assert len(daemon.log) < MOST_LOG
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 1024))
        late = time.monotonic() + SOON
        while outcome(open_.enter_context(Client(daemon.socket, app="late")).ping) != "done":
            assert time.monotonic() < late
        for name in [info.name for info in client.contexts()]:
            _ = client.generate(name, HI, max_tokens=4).done
        assert outcome(client.fork, "x", name="another copy") == "done"
        for info in client.contexts():
            assert outcome(client.delete, info.id) == "done"
