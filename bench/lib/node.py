"""Daemons that are nodes, in processes of their own, paired with each other over links that a bench slows down."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from bench.lib.cli import Options, say
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

    def start_if_killed(self) -> None:
        """Raises RuntimeError if it has ended in another way."""
        code = None if self.process is None else self.process.poll()
        if code not in (None, -signal.SIGKILL):
            raise RuntimeError(f"a daemon has ended by itself: {self.last_words()}")
        if code is not None:
            self.start()

    def last_words(self) -> str:
        """Whether it runs, and the end of its log."""
        code = None if self.process is None else self.process.poll()
        path, state = self.folder / "log", "running" if code is None else f"exit code {code}"
        log = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
        return "\n  ".join([f"node {self.name}: {state}", *log[-20:]])

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
    with paired_nodes(options, "ab", *flags, fake=fake) as nodes:
        a, b = nodes
        yield a, b


@contextmanager
def paired_nodes(
    options: Options, names: Sequence[str], *flags: str, fake: bool = False
) -> Iterator[list[NodeProcess]]:
    """Daemons of these names, each paired with each, and with ``flags`` of ``llmaas serve``."""
    taken: set[int] = set()
    with ExitStack() as stack:
        nodes = []
        for name in names:
            port = free_port(taken)
            link = stack.enter_context(slow_link(port))
            nodes.append(_node(options, name, port, link, flags, fake=fake, share=len(names)))
        for here, there in permutations(nodes, 2):
            certificate = own_identity(there.folder / "store").certificate
            address = f"127.0.0.1:{there.link.port}"
            PinnedNodes(here.folder / "store").add(PinnedNode(there.name, certificate, address))
        try:
            for node in nodes:
                node.start()
            yield nodes
        except Exception:  # their logs go with the folder
            for node in nodes:
                say(node.last_words())
            raise
        finally:
            for node in nodes:
                if node.process is not None and node.process.poll() is None:
                    node.stop()


def _node(
    options: Options, name: str, port: int, link: SlowLink, flags: tuple[str, ...], *, fake: bool, share: int
) -> NodeProcess:
    folder = options.folder / name
    folder.mkdir()
    program = ["bench.lib.fake_daemon"] if fake else ["llmaas", "serve"]
    threads = max(1, options.threads // share)  # two machines do not take cores from each other
    command = [sys.executable, "-m", *program, "--model", str(options.model), "--threads", str(threads)]
    command += ["--socket", str(folder / "d.sock"), "--data-dir", str(folder / "store")]
    command += ["--nodes", f"127.0.0.1:{port}", "--no-warm-start", *flags]
    return NodeProcess(name, folder, command, link)


def free_port(taken: set[int]) -> int:
    """Not one that the kernel may give to a connection while the node is away."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            if port not in taken:
                taken.add(port)
                return port
