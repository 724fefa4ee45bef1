"""Daemons that are nodes, in processes of their own, paired with each other over links that a bench slows down."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.lib.cli import Options
from bench.lib.daemon import wait_for_socket
from bench.lib.machine import ROOT
from bench.lib.slow_link import SlowLink, slow_link
from llmaas.api.client import Client
from llmaas.nodes.identity import own_identity
from llmaas.nodes.pinned import PinnedNode, PinnedNodes


@dataclass
class NodeProcess:
    """``link``: by which the other one reaches it."""

    name: str
    folder: Path
    command: list[str]
    link: SlowLink
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "d.sock"

    def start(self) -> None:
        log = self.folder / "log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stderr=file)
        wait_for_socket(self.socket, self.process, log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)
        self.socket.unlink(missing_ok=True)  # so that the next start is waited for

    def stop(self) -> int:
        """The exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def client(self) -> Client:
        return Client(self.socket, app="bench")


@contextmanager
def two_nodes(options: Options, *flags: str, fake: bool = False) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """Two daemons that are paired as "a" and "b", each with ``flags`` of ``llmaas serve``."""
    taken: set[int] = set()
    ports = [_free_port(taken), _free_port(taken)]
    with slow_link(ports[0]) as to_a, slow_link(ports[1]) as to_b:
        nodes = [
            _node(options, name, port, link, flags, fake=fake)
            for name, port, link in zip("ab", ports, (to_a, to_b), strict=True)
        ]
        a, b = nodes
        for here, there in ((a, b), (b, a)):
            certificate = own_identity(there.folder / "store").certificate
            address = f"127.0.0.1:{there.link.port}"
            PinnedNodes(here.folder / "store").add(PinnedNode(there.name, certificate, address))
        try:
            for node in nodes:
                node.start()
            yield a, b
        finally:
            for node in nodes:
                if node.process is not None and node.process.poll() is None:
                    node.stop()


def _node(options: Options, name: str, port: int, link: SlowLink, flags: tuple[str, ...], *, fake: bool) -> NodeProcess:
    folder = options.folder / name
    folder.mkdir()
    program = ["bench.lib.fake_daemon"] if fake else ["llmaas", "serve"]
    threads = max(1, options.threads // 2)  # two machines do not take cores from each other
    command = [sys.executable, "-m", *program, "--model", str(options.model), "--threads", str(threads)]
    command += ["--socket", str(folder / "d.sock"), "--data-dir", str(folder / "store")]
    command += ["--nodes", f"127.0.0.1:{port}", "--no-warm-start", *flags]
    return NodeProcess(name, folder, command, link)


def _free_port(taken: set[int]) -> int:
    """Not one that the kernel may give to a connection while the node is away."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            if port not in taken:
                taken.add(port)
                return port
