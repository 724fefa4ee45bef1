"""Makes this machine a part of a cluster, by Ray's own command.

Law: nothing is told to anybody outside, no dashboard is opened, and a head on loopback keeps all of Ray there. What Ray
starts goes on when this process ends; ``ray stop`` ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from llmaas.errors import MachineError
from llmaas.nodes.card import host_and_port
from llmaas.nodes.cluster.ray_cluster import on_loopback, ray_module

DEFAULT_ADDRESS = "127.0.0.1:6379"
_STORE_BYTES = 80_000_000
"""Of Ray's object store, which has to have one: what goes through Ray here is small."""
_START_S = 120.0


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
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_START_S, env=_environment(), stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"Ray has not started within {_START_S:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise MachineError(
            f"Ray does not start: {said[-1][:300] if said else f'exit code {done.returncode}'}",
            hint="If another Ray runs here, use it ('--ray HOST:PORT'), or end it: 'ray stop'.",
        )


def _environment() -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
    return {**os.environ, **quiet}
