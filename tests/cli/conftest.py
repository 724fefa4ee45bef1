"""A real daemon in a process of its own, and the command line as a user runs it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-W", "error", "-m", "llmaas"]
START_S = 60.0


def clean_environ(home: Path) -> dict[str, str]:
    """The environment without settings, with ``home`` as home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLMAAS_", "XDG_"))}
    return kept | {"HOME": str(home), "TERM": "dumb"}


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def llmaas(tmp_path: Path) -> Run:
    """Runs one command to its end: ``llmaas("ctx", "ls", stdin="")``."""

    def run(*args: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *args],
            input=stdin,
            env=clean_environ(tmp_path) | environ,
            capture_output=True,
            text=True,
            timeout=90,
        )

    return run


@dataclass
class Daemon:
    """``llmaas serve`` on a temporary socket; ``start`` may be called again after ``stop``."""

    root: Path
    process: subprocess.Popen[str] | None = None
    prefix: tuple[str, ...] = ()
    """What comes before the command; the process id must stay."""
    more: tuple[str, ...] = ()
    """Flags."""
    limits: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Soft and hard ones, by their numbers (getrlimit(2))."""

    @property
    def socket(self) -> Path:
        return self.root / "run" / "d.sock"

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def log(self) -> str:
        return (self.root / "log").read_text("utf-8")

    def start(self) -> None:
        flags = ["--socket", str(self.socket), "--data-dir", str(self.data_dir), "--cells", "2048"]
        with (self.root / "log").open("a") as log:
            command = [*self.prefix, *COMMAND, "serve", *flags, *self.more]
            self.process = subprocess.Popen(command, env=clean_environ(self.root), stderr=log, text=True)
            for number, limit in self.limits.items():
                resource.prlimit(self.process.pid, number, limit)  # it reads its limits when the model is loaded
        late = time.monotonic() + START_S
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > late:
                self.stop(signal.SIGKILL)
                pytest.fail(f"the daemon did not start:\n{self.log}")
            time.sleep(0.05)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """The exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    daemon.start()
    yield daemon
    daemon.stop()
