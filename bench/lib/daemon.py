"""A real daemon in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.lib.cli import Options
from bench.lib.engine import CELLS
from bench.lib.machine import ROOT


@contextmanager
def daemon(
    options: Options, name: str, *flags: str, endless: bool = False, fake: bool = False
) -> Iterator[tuple[Path, int]]:
    """A daemon for the time of the block, with a store in a folder ``name`` of its own: its socket and process id.

    ``flags`` are more options of ``llmaas serve``. ``endless``: no answer ends before its ``max_tokens``;
    ``fake``: on the fake engine. Raises RuntimeError with the daemon's log if it does not start within a minute.
    """
    with starting(options, name, *flags, endless=endless, fake=fake) as (socket, process):
        wait_for_socket(socket, process, socket.with_suffix(".log"))
        yield socket, process.pid


def wait_for_socket(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the daemon listens. Raises RuntimeError with its log if it ends before, or takes a minute."""
    deadline = time.monotonic() + 60
    while not _listens(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the daemon did not start:\n{log.read_text('utf-8', 'replace')}")
        time.sleep(0.02)


def _listens(path: Path) -> bool:
    """Whether a daemon takes connections: its file alone may be there a moment before that, or of one that has died."""
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


@contextmanager
def starting(
    options: Options, name: str, *flags: str, endless: bool = False, fake: bool = False
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """As ``daemon``, but the block begins with the process: its socket is not there yet. The log is beside it."""
    socket = options.folder / f"{name}.sock"
    program = ["bench.lib.endless"] if endless else ["bench.lib.fake_daemon"] if fake else ["llmaas", "serve"]
    command = [sys.executable, "-m", *program, "--socket", str(socket), "--model", str(options.model)]
    command += ["--data-dir", str(options.folder / name), "--cells", str(CELLS), "--threads", str(options.threads)]
    with (
        socket.with_suffix(".log").open("wb") as file,
        subprocess.Popen([*command, *flags], cwd=ROOT, stderr=file) as process,
    ):
        try:
            yield socket, process
        finally:
            process.terminate()
            process.wait(60)
