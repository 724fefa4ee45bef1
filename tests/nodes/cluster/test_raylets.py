"""A cluster of which one node has a part of Ray of its own, as another machine has: that is killed, and joins again.

To be run by itself: beside another cluster on this machine ``ray start`` of such a part was seen to hang.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec

import psutil
import pytest

from llmaas.errors import NodeUnreachable
from tests.support.daemon import answer_to
from tests.support.ray_house import NAMES, OWN, OWN_IP, RayHouse, ray_house

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra cluster", allow_module_level=True)
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
APART = NAMES[-1]


@pytest.fixture(scope="module")
def apart() -> Iterator[RayHouse]:
    if any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        pytest.skip("another Ray runs on this machine: run this file by itself")
    with ray_house(apart=APART) as made:
        yield made


def raylet(house: RayHouse) -> psutil.Process:
    """Of the node that is apart."""

    def is_it(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.name() == "raylet" and any(word.endswith(f"={OWN_IP}") for word in process.cmdline())
        return False

    (found,) = [process for process in house.processes() if is_it(process)]
    return found


def test_a_node_that_joins_with_a_part_of_its_own_has_its_agent_there(apart: RayHouse) -> None:
    inside = {process.pid for process in raylet(apart).children(recursive=True)}
    assert {name for name in NAMES if apart.agent_pid(name) in inside} == {APART}


def test_a_part_that_is_killed_takes_its_node_away_and_nothing_else_until_it_joins_again(apart: RayHouse) -> None:
    with apart.client() as client:
        for name in ("goes", "stays"):
            client.create(name=name)
            client.ask(name, "hello", max_tokens=8)
        for name, node in (("goes", APART), ("stays", NAMES[0])):
            if apart.owners(name) != [node]:
                client.move(name, node)
        os.kill(raylet(apart).pid, signal.SIGKILL)
        apart.until(lambda: not all(node["serving"] for node in apart.status()["nodes"]), "it is missed")
        assert {node["place"]["name"] for node in apart.status()["nodes"] if not node["serving"]} == {APART}
        with pytest.raises(NodeUnreachable, match=APART):
            client.ask("goes", "and?", max_tokens=8)
        assert client.ask("stays", "and?", max_tokens=8) == answer_to("hello", "and?")
        for i in range(3):
            client.create(name=f"meanwhile-{i}")
            assert client.ask(f"meanwhile-{i}", "hello", max_tokens=8) == answer_to("hello")
            assert apart.owners(f"meanwhile-{i}") != [APART]
        with apart.nodes[APART].client() as beside:
            assert beside.ask("goes", "and?", max_tokens=8) == answer_to("hello", "and?"), "its daemon serves on"
        apart.join(APART, *OWN)
        apart.until(lambda: client.ask("goes", "more", max_tokens=8), "it is back")
        assert client.show("goes").messages[-1].content == answer_to("hello", "and?", "more")
    assert all(node["serving"] for node in apart.status()["nodes"])
