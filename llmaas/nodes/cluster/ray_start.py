"""Makes this machine a part of a cluster, by Ray's own command.

Law: nothing is told to anybody outside, no dashboard is opened, and a head on loopback keeps all of Ray there. What Ray
starts goes on when this process ends; ``ray stop`` ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from llmaas.errors import MachineError
from llmaas.nodes.card import host_and_port
from llmaas.nodes.cluster.ray_cluster import on_loopback, ray_module

DEFAULT_ADDRESS = "127.0.0.1:6379"
_STORE_BYTES = 80_000_000
"""Of Ray's object store, which has to have one: what goes through Ray here is small."""
_START_S = 120.0
_MOST_SAID = 4096
"""Bytes of the end of what it says that are looked at."""


def start_head(address: str) -> None:
    """Begin a cluster whose head listens on HOST:PORT, an address of this machine. Raises MachineError, ConfigError."""
    host, port = host_and_port(address)
    on_loopback(address)
    _start(["--head", f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=false", "--no-monitor"])


def start_part(address: str, own: str) -> None:
    """Let this machine be a part of the cluster whose head is at HOST:PORT. ``own``: its address by which the others
    reach it. Raises MachineError, ConfigError."""
    _start([f"--address={address}", f"--node-ip-address={own}"])


def _start(options: Sequence[str]) -> None:
    ray_module()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    command += [
        "--disable-usage-stats",
        "--include-log-monitor=false",
        "--num-cpus=0",
        f"--object-store-memory={_STORE_BYTES}",
    ]
    # To files: the end of a pipe comes when all that Ray has begun has ended, if any of that has got it, too.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run(
                command, stdout=out, stderr=err, timeout=_START_S, env=_environment(), stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            last = _last_line(err) or _last_line(out)
            raise MachineError(
                f"Ray has not started within {_START_S:g} s{f'; it said last: {last}' if last else ''}",
                hint="End what it has begun ('ray stop'), and try again when the machine has less to do.",
            ) from None
        if done.returncode:
            raise MachineError(
                f"Ray does not start: {_last_line(err) or _last_line(out) or f'exit code {done.returncode}'}",
                hint="If another Ray runs here, use it ('--ray HOST:PORT'), or end it: 'ray stop'.",
            )


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - _MOST_SAID))
    lines = file.read(_MOST_SAID).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _environment() -> dict[str, str]:
    # With its output to stderr, what Ray begins would keep that of this command, and write to it for good.
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_LOG_TO_STDERR": "0"}
    return {**os.environ, **quiet}
