"""How a real daemon ends: while it starts, while it is busy, and when it cannot go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.client import Client
from llmaas.api.wire import MAX_FRAME
from llmaas.errors import Internal, ShuttingDown
from llmaas.records import Message
from tests.cli.conftest import START_S, Daemon, clean_environ
from tests.engine.constraint.test_bombs import BOMBS
from tests.support.daemon import Peer

MOST_S = 2.0
"""Seconds to the end when nothing is to be written."""
LOADING = """
import time
from llmaas.cli import runtime
def load(*_):
    print("loading", flush=True)
    time.sleep(60)
runtime.load_engine = load
"""
WRONG_BOOKS = """
from llmaas.errors import PolicyBug
from llmaas.planner.events import StepDone
from llmaas.planner.planner import Planner
handle = Planner.handle
def faulty(self, event, now):
    if isinstance(event, StepDone):
        raise PolicyBug("wrong books")
    return handle(self, event, now)
Planner.handle = faulty
"""


@contextmanager
def altered(root: Path, change: str) -> Iterator[subprocess.Popen[str]]:
    """``llmaas serve`` in a process in which ``change`` was run before."""
    flags = ["serve", "--socket", str(root / "d.sock"), "--data-dir", str(root / "data"), "--cells", "1024"]
    program = f"{change}\nimport sys\nfrom llmaas.cli.main import main\nsys.exit(main({flags!r}))"
    with (root / "log").open("w") as log:
        args = [sys.executable, "-c", program]
        process = subprocess.Popen(args, env=clean_environ(root), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_that_loads_its_model_ends_at_once(tmp_path: Path, signum: int) -> None:
    with altered(tmp_path, LOADING) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        began = time.monotonic()
        process.send_signal(signum)
        assert process.wait(START_S) == 0
        assert time.monotonic() - began < MOST_S
        assert "stopped before it was ready" in (tmp_path / "log").read_text("utf-8")


def test_a_daemon_whose_books_are_wrong_tells_its_callers_and_ends(tmp_path: Path) -> None:
    with altered(tmp_path, WRONG_BOOKS) as process:
        late = time.monotonic() + START_S
        while not (tmp_path / "d.sock").exists():
            assert process.poll() is None and time.monotonic() < late, (tmp_path / "log").read_text("utf-8")
            time.sleep(0.05)
        with Client(tmp_path / "d.sock", app="test") as client:
            client.create(name="x")
            with pytest.raises((Internal, ShuttingDown)):
                _ = client.generate("x", [Message("user", "hi")]).done
        assert process.wait(START_S) == 1, "a service manager starts it again"
        log = (tmp_path / "log").read_text("utf-8")
        assert "the planner failed" in log and "wrong books" in log


def test_a_busy_daemon_ends_soon_and_tells_everybody(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        with ExitStack() as clients:
            streams = []
            for app in ("one", "two", "three"):
                client = clients.enter_context(Client(daemon.socket, app=app))
                client.create(name="x")
                streams.append(client.generate("x", [Message("user", "Tell a story. " * 40)], max_tokens=900))
            time.sleep(0.3)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 4 * MOST_S, daemon.log  # chunks are written, too
            for stream in streams:
                with pytest.raises(ShuttingDown):
                    _ = stream.done
    finally:
        daemon.stop(signal.SIGKILL)


def _long_texts() -> list[dict[str, Any]]:
    """What takes longest to render or to tokenize, and is within the bounds of a request."""
    texts = [letter * (MAX_FRAME // 4 // len(letter.encode())) for letter in ("a b ", "x", "\u6f22", "\n-")]
    wide = [{"role": f"r{i % 40}", "content": "a"} for i in range(4096)]
    return (
        [{"prompt": text} for text in texts]
        + [{"messages": [{"role": "user", "content": text}]} for text in texts]
        + [{"messages": wide}] * 4
    )


WORK = {"grammars": [*BOMBS.values()], "texts": _long_texts()}


@pytest.mark.parametrize("kind", WORK)
def test_a_daemon_ends_soon_while_it_reads_what_takes_long(tmp_path: Path, kind: str) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        with ExitStack() as peers, Client(daemon.socket, app="raw") as client:
            for n, fields in enumerate(WORK[kind]):
                client.create(name=f"c{n}")
                peer = peers.enter_context(Peer(daemon.socket))
                peer.hello()
                asked = fields if kind == "texts" else {"prompt": "x", **fields}
                peer.send({"id": 1, "op": "generate", "context": f"c{n}", "max_tokens": 4, **asked})
            time.sleep(0.3)
            client.ping()
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 4 * MOST_S, daemon.log
    finally:
        daemon.stop(signal.SIGKILL)
