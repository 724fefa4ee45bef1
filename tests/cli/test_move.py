"""``llmaas ctx move --to-node`` with the real model: the conversation goes on at the other machine, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.nodes.identity import own_identity
from tests.cli.conftest import Daemon, Run
from tests.cli.test_archives import EXACT, TEXT, ask, shown, until_stored
from tests.support.node_house import free_port, pin


@pytest.fixture
def two_nodes(gguf: Path, tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """A phone that has the conversations ``notes`` and ``unmoved``, which are alike; and a desk."""
    daemons = {name: Daemon(tmp_path / name) for name in ("phone", "desk")}
    addresses = {name: f"127.0.0.1:{free_port()}" for name in daemons}
    for name, other in (("phone", "desk"), ("desk", "phone")):
        pin(daemons[name].data_dir, other, own_identity(daemons[other].data_dir), addresses[other])
    try:
        for name, daemon in daemons.items():
            daemon.more = (*EXACT, "--nodes", addresses[name])
            daemon.start()
        ask(daemons["phone"], "notes", TEXT, 24)
        until_stored(daemons["phone"], "notes")
        with Client(daemons["phone"].socket, app="cli") as client:
            client.fork("notes", name="unmoved")
        yield daemons["phone"], daemons["desk"]
    finally:
        for daemon in daemons.values():
            if daemon.process is not None:
                daemon.stop()


def test_it_goes_on_as_if_it_had_not_moved_and_nothing_is_computed(
    llmaas: Run, two_nodes: tuple[Daemon, Daemon]
) -> None:
    phone, desk = two_nodes
    here, there = ({"LLMAAS_SOCKET": str(daemon.socket)} for daemon in two_nodes)
    before = shown(phone, "notes")
    moved = llmaas("ctx", "move", "notes", "--to-node", "desk", "--as", "brought", **here)
    assert (moved.returncode, moved.stderr) == (0, ""), moved
    assert "brought is at desk" in moved.stdout and " 0 chunks" not in moved.stdout
    assert "notes" not in llmaas("ctx", "ls", **here).stdout and "brought" in llmaas("ctx", "ls", **there).stdout
    assert shown(desk, "brought") == before
    said, done = ask(desk, "brought", "And then?", 24)
    assert done.switch.recomputed == 0 and done.switch.cells + done.switch.pool + done.switch.disk >= before[0] - 1
    assert said == ask(phone, "unmoved", "And then?", 24)[0]
    assert phone.stop() == 0
    lost = llmaas("ctx", "move", "brought", "--to-node", "phone", **there)
    assert lost.returncode == 1 and "does not answer" in lost.stderr
    assert ask(desk, "brought", "Still here?", 4)[0]
    phone.start()
    assert llmaas("ctx", "move", "brought", "--to-node", "phone", **there).returncode == 0
    assert shown(phone, "brought")[0] > before[0]
    for words in (("--to-node", "desk", "--keep"), ("--to", "other", "--as", "x"), ("--to", "other", "--no-chunks")):
        assert llmaas("ctx", "move", "brought", *words, **here).returncode == 2
