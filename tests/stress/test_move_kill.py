"""kill -9 of one of two nodes at each step of a move: after a restart one of them owns the context, with all of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.errors import LlmaasError, Moving, NotServing
from llmaas.nodes.identity import own_identity
from tests.support.node_house import free_port, pin

PROGRAM = Path(__file__).with_name("node_under_test.py")
WORDS = "the tide comes in and the tide goes out " * 4
LATE = 90.0
"""Seconds within which everything must happen, on a busy machine."""

STEPS = [(op, when) for op in ("offer", "spans", "take", "chunks", "settled") for when in ("before", "after")]
QUICK = {
    ("asks", "take", "before"),
    ("asks", "take", "after"),
    ("answers", "take", "after"),
    ("answers", "chunks", "before"),
}
CASES = [
    pytest.param(who, op, when, marks=() if (who, op, when) in QUICK else pytest.mark.slow)
    for who in ("asks", "answers")
    for op, when in STEPS
]


@dataclass
class Node:
    root: Path
    port: int
    process: subprocess.Popen[str] | None = None

    def start(self, *deadly: str) -> None:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in [str(PROGRAM.parents[2]), *sys.path] if p)}
        command = [sys.executable, str(PROGRAM), str(self.root), str(self.port), *deadly]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def client(self) -> Client:
        return Client(self.root / "d.sock", app="mail")

    def end(self, signum: int) -> int:
        assert self.process is not None and self.process.stdout is not None
        self.process.send_signal(signum)
        code = self.process.wait(LATE)
        self.process.stdout.close()
        return code

    def has_it(self) -> bool:
        with self.client() as client:
            return any(info.name == "x" for info in client.contexts())


def paired(root: Path) -> tuple[Node, Node]:
    phone, desk = Node(root / "phone", free_port()), Node(root / "desk", free_port())
    for here, there, name in ((phone, desk, "desk"), (desk, phone, "phone")):
        pin(here.root / "data", name, own_identity(there.root / "data"), f"127.0.0.1:{there.port}")
    return phone, desk


def the_owner(phone: Node, desk: Node) -> Node:
    """Once both know it."""
    late = time.monotonic() + LATE
    while time.monotonic() < late:
        owners = [node for node in (phone, desk) if node.has_it()]
        if len(owners) == 1:
            with contextlib.suppress(Moving), owners[0].client() as client:
                client.show("x")
                return owners[0]
        time.sleep(0.1)
    raise AssertionError(f"{len(owners)} owners, or nobody may use it")


@pytest.mark.parametrize("who, op, when", CASES)
def test_one_owner_has_all_that_was_acknowledged(tmp_path: Path, who: str, op: str, when: str) -> None:
    phone, desk = paired(tmp_path)
    victim = phone if who == "asks" else desk
    for node in (phone, desk):
        node.start(*((who, op, when) if node is victim else ()))
    try:
        with phone.client() as client:
            client.create(name="x", system="Be brief.")
            for i in range(3):
                client.ask("x", f"{i}: {WORDS}", max_tokens=9)
            before = list(client.show("x").messages)
            with contextlib.suppress(NotServing, LlmaasError):
                client.move("x", "desk")
        assert victim.process is not None and victim.process.wait(LATE) == -signal.SIGKILL, "it should have died there"
        victim.end(signal.SIGKILL)
        victim.start()
        owner = the_owner(phone, desk)
        late = op in ("chunks", "settled") or (op, when) == ("take", "after")
        assert owner is (desk if late else phone)
        with owner.client() as client:
            assert list(client.show("x").messages) == before
            client.ask("x", "and?", max_tokens=5)
    finally:
        codes = [node.end(signal.SIGTERM) for node in (phone, desk)]
    assert codes == [0, 0], "each looks at its books at the end"
