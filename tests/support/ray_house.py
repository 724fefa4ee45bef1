"""A cluster on Ray, for tests: daemons in processes of their own, each with its store, and all that the commands of
``llmaas cluster`` begin. Who uses it may kill any of them; at the end each daemon looks at its books."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.lib.ray_nodes import ray_processes
from bench.lib.slow_link import SlowLink, slow_link
from llmaas.api.client import Client
from llmaas.errors import LlmaasError
from llmaas.nodes.identity import own_identity
from tests.stress.test_move_kill import Node
from tests.support.node_house import free_port, pin

LATE = 120.0
"""Seconds within which everything must happen: Ray begins a process in two, on a machine that is busy in ten."""
NAMES = ("attic", "barn", "cellar")
OWN_IP = "127.0.0.2"
OWN = ("--own", OWN_IP)
"""Words for ``join``: let the node have a raylet of its own, which begins with it."""
ROOT = Path(__file__).parents[2]


@dataclass
class RayHouse:
    """``links``: by which each node is reached by the others."""

    root: Path
    temp: str
    address: str
    nodes: dict[str, Node]
    links: dict[str, SlowLink]
    entry: subprocess.Popen[bytes] | None = None
    said: list[str] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), *(each for each in sys.path if each)])
        given = {"PYTHONPATH": path, "RAY_TMPDIR": self.temp, "RAY_ADDRESS": self.address, "HOME": str(self.root)}
        return {**os.environ, **given}

    def run(self, *words: str, code: int | None = 0) -> str:
        """A command of ``llmaas cluster``: what it prints."""
        command = [sys.executable, "-m", "llmaas", "cluster", *words]
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=LATE, stdin=subprocess.DEVNULL
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode} {done.stdout} {done.stderr}"
        return done.stdout + done.stderr

    def join(self, name: str, *more: str) -> str:
        node = self.nodes[name].root
        return self.run("join", name, "--socket", str(node / "d.sock"), "--data-dir", str(node / "data"), *more)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.JSONDecoder().raw_decode(self.run("status", "--json", code=None))[0]
        return found

    def agent_pid(self, name: str) -> int:
        return int(next(node["pid"] for node in self.status()["nodes"] if node["place"]["name"] == name))

    def client(self, **options: Any) -> Client:
        return Client(self.root / "entry.sock", app="mail", **options)

    def begin_entry(self) -> None:
        log = (self.root / "entry.log").open("ab")
        command = [sys.executable, "-m", "llmaas", "cluster", "serve", "--socket", str(self.root / "entry.sock")]
        command += ["--data-dir", str(self.root / "entry-data")]
        self.entry = subprocess.Popen(command, env=self.environ, stderr=log, stdout=log, stdin=subprocess.DEVNULL)
        log.close()
        self.until(lambda: self.client().close() is None, "the entry serves")

    def end_entry(self) -> int:
        assert self.entry is not None
        self.entry.send_signal(signal.SIGTERM)
        return self.entry.wait(LATE)

    def owners(self, context: str) -> list[str]:
        found = []
        for name, node in self.nodes.items():
            with node.client() as client:
                if any(info.name == context for info in client.contexts()):
                    found.append(name)
        return found

    @staticmethod
    def until(true: Callable[[], object], what: str) -> None:
        """Return when it is so; errors of llmaas mean that it is not yet."""
        late = time.monotonic() + LATE
        while True:
            with suppress(LlmaasError, OSError):
                if true():
                    return
            assert time.monotonic() < late, f"not within {LATE:g} s: {what}"
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All that Ray runs for this cluster."""
        return ray_processes(self.temp)


class RealNode(Node):
    """``llmaas serve`` with the packaged model: all chunks of 16 bits, so that moving changes no answer."""

    def start(self, *deadly: str) -> None:
        assert not deadly
        socket = self.root / "d.sock"
        flags = ["--socket", str(socket), "--data-dir", str(self.root / "data"), "--nodes", f"127.0.0.1:{self.port}"]
        flags += ["--cells", "2048", "--bits", "16/16", "--threads", "1"]
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "log").open("ab") as log:
            command = [sys.executable, "-m", "llmaas", "serve", *flags]
            env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(self.root)}
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        RayHouse.until(lambda: self.client().close() is None, f"a daemon serves {socket}")


def started(
    root: Path, names: Sequence[str], make: Callable[[Path, int], Node], stack: ExitStack
) -> tuple[dict[str, Node], dict[str, SlowLink]]:
    nodes = {name: make(root / name, free_port()) for name in names}
    links = {name: stack.enter_context(slow_link(node.port)) for name, node in nodes.items()}
    for here, there in itertools.permutations(names, 2):
        address = f"127.0.0.1:{links[there].port}"
        pin(nodes[here].root / "data", there, own_identity(nodes[there].root / "data"), address)
    for node in nodes.values():
        node.start()
    return nodes, links


def machine_ip() -> str:
    """By which Ray knows this machine: a head on loopback takes no parts but its own."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


@contextmanager
def ray_house(
    names: Sequence[str] = NAMES, make: Callable[[Path, int], Node] = Node, *, apart: str = ""
) -> Iterator[RayHouse]:
    """Daemons, a head, agents, and an entry. ``make``: a node, by its folder and port. ``apart``: the
    node that has a raylet of its own, at an address of its own, as on another machine."""
    temp = tempfile.mkdtemp(prefix="llr-", dir="/tmp")
    root = Path(temp) / "house"
    root.mkdir()
    with ExitStack() as stack:
        nodes, links = started(root, names, make, stack)
        house = RayHouse(root, temp, f"{machine_ip() if apart else '127.0.0.1'}:{free_port()}", nodes, links)
        try:
            first, *others = names
            house.said.append(house.join(first, "--head", *([house.address] if apart else ())))
            with ThreadPoolExecutor() as pool:
                house.said += pool.map(house.join, [name for name in others if name != apart])
            if apart:
                house.said.append(house.join(apart, *OWN))
            house.begin_entry()
            yield house
            assert house.end_entry() == 0
        finally:
            ended = house.processes()
            for process in ended:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(ended, LATE)
            codes = [node.end(signal.SIGTERM) for node in nodes.values() if node.process is not None]
            shutil.rmtree(temp, ignore_errors=True)
    assert codes == [0] * len(codes), "each daemon looks at its books and its store at the end"
