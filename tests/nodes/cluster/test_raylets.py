"""A cluster whose nodes have parts of Ray of their own, as machines do: one such part is killed, and joins again."""

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
from tests.support.ray_house import NAMES, RayHouse, ray_house

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra cluster", allow_module_level=True)
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture(scope="module")
def apart() -> Iterator[RayHouse]:
    with ray_house(apart=True) as made:
        yield made


def raylet(house: RayHouse, name: str) -> psutil.Process:
    def is_it(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.name() == "raylet" and f"--node_ip_address={house.ip(name)}" in process.cmdline()
        return False

    (found,) = [process for process in house.processes() if is_it(process)]
    return found


def test_each_node_has_its_agent_in_its_own_part_of_ray(apart: RayHouse) -> None:
    for name in NAMES:
        agent = psutil.Process(apart.agent_pid(name))
        assert agent.parent() == raylet(apart, name)


def test_a_part_that_is_killed_takes_its_node_away_and_nothing_else_until_it_joins_again(apart: RayHouse) -> None:
    with apart.client() as client:
        at: dict[str, str] = {}
        for i in range(12):
            client.create(name=f"c{i}")
            client.ask(f"c{i}", "hello", max_tokens=8)
            (owner,) = apart.owners(f"c{i}")
            at.setdefault(owner, f"c{i}")
        for name in NAMES[1:]:
            if name not in at:
                client.move("c11", name)
                at[name] = "c11"
                break
        gone = next(name for name in NAMES[1:] if name in at)
        stays = next((name for name in NAMES if name in at and name != gone), "")
        os.kill(raylet(apart, gone).pid, signal.SIGKILL)
        apart.until(lambda: not all(node["serving"] for node in apart.status()["nodes"]), "it is missed")
        assert {node["place"]["name"] for node in apart.status()["nodes"] if not node["serving"]} == {gone}
        with pytest.raises(NodeUnreachable, match=gone):
            client.ask(at[gone], "and?", max_tokens=8)
        if stays:
            assert client.ask(at[stays], "and?", max_tokens=8) == answer_to("hello", "and?")
        for i in range(3):
            client.create(name=f"meanwhile-{i}")
            assert client.ask(f"meanwhile-{i}", "hello", max_tokens=8) == answer_to("hello")
            assert apart.owners(f"meanwhile-{i}") != [gone]
        apart.join(gone, *apart.own(gone))
        apart.until(lambda: client.ask(at[gone], "and?", max_tokens=8), "it is back")
        assert client.show(at[gone]).messages[-1].content == answer_to("hello", "and?")
    assert all(node["serving"] for node in apart.status()["nodes"])
