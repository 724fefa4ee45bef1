"""The demo's daemon: a real ``llmaas serve`` on a temporary socket.

Law: started, stopped and looked at from outside, as an operator would.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from llmaas.api.client import Client
from llmaas.cli.demo.plan import CODED, Plan
from llmaas.clock import RealClock
from llmaas.errors import MachineError, NotServing

DIRECTOR = "demo"
"""The app name of the demo itself."""
_START_S = 90.0
_STOP_S = 60.0
_LOOK_S = 0.05


class Daemon:
    """``start`` may be called again after ``stop``: the data stays."""

    def __init__(self, root: Path, model: Path, plan: Plan, environ: Mapping[str, str]) -> None:
        self.socket = root / "d.sock"
        self.data_dir = root / "data"
        self._log = root / "daemon.log"
        self._environ = environ
        self._flags = {
            "socket": self.socket,
            "data-dir": self.data_dir,
            "model": model,
            "cells": plan.cells,
            "pool-bytes": plan.pool_bytes,
            "bits": f"{CODED.k}/{CODED.v}",
            "warm-start": "false",  # what a restart costs is shown, not how it is hidden
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when it serves. Raises MachineError with the end of its log."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "llmaas",
                    "serve",
                    *(f"--{name}={value}" for name, value in self._flags.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._environ),
                start_new_session=True,
            )
        clock, pause = RealClock(), threading.Event()
        late = clock.now() + _START_S
        while True:
            with contextlib.suppress(NotServing), self.connect():
                return
            if self._process.poll() is not None:
                raise MachineError(f"the daemon did not start:\n{self.log_end()}")
            if clock.now() > late:
                raise MachineError(f"the daemon does not serve after {_START_S:.0f} s:\n{self.log_end()}")
            pause.wait(_LOOK_S)

    def connect(self) -> Client:
        return Client(self.socket, app=DIRECTOR, admin=True)

    def stop(self) -> int:
        """SIGTERM, as a system would; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            raise MachineError(f"the daemon did not stop within {_STOP_S:.0f} s:\n{self.log_end()}") from None

    def kill(self) -> None:
        """End it at once: its data is not needed any more."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log_end(self, n_lines: int = 8) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-n_lines:])

    def forget_page_cache(self) -> None:
        """Drop the stored chunks from the kernel's page cache, so that DISK means the disk."""
        for path in sorted((self.data_dir / "payload").glob("*")):
            with contextlib.suppress(OSError):  # a context may be deleted meanwhile
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fdatasync(fd)  # dirty pages cannot be dropped
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(fd)
