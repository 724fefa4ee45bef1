"""kill -9 in a cluster while a context moves from node to node in the middle of an answer: of the source, the target,
the controller, or a worker of Ray. One node has the context afterwards, with all that was acknowledged."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

import pytest

from tests.support.ray_house import LATE, RayHouse
from tests.support.ray_moves import answer_after, judge, source_and_target, talked, the_owner, under_way

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra cluster", allow_module_level=True)
pytestmark = pytest.mark.timeout(600)


def pid_of(house: RayHouse, victim: str, source: str, target: str) -> int | None:
    match victim:
        case "source" | "target":
            process = house.nodes[source if victim == "source" else target].process
            return None if process is None else process.pid
        case "controller":
            return int(house.status()["controller_pid"])
        case "worker":
            return house.agent_pid(source)
        case _:
            return None


@pytest.mark.parametrize(
    "victim", [pytest.param("nobody", marks=pytest.mark.slow), "source", "target", "controller", "worker"]
)
def test_one_owner_has_all_that_was_acknowledged(house: RayHouse, victim: str) -> None:
    name = f"of-{victim}"
    before = talked(house, name)
    expected = answer_after(before)
    source, target = source_and_target(house, name)
    pid = pid_of(house, victim, source, target)
    asked, moved = under_way(house, name, target)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    house.links[target].bits_per_s = 0.0
    for thread in (asked, moved):
        thread.join(LATE)
        assert not thread.is_alive(), "it neither goes on nor ends"
    for node in (source, target):
        process = house.nodes[node].process
        if process is not None and process.poll() is not None:
            house.nodes[node].end(signal.SIGKILL)
            house.nodes[node].start()
    owner = the_owner(house, name)
    judge(house, owner, name, before, expected, asked)
    if victim not in ("source", "target"):
        assert (moved.error, asked.error, asked.done, owner) == ("", "", True, target)
    house.until(lambda: all(node["serving"] for node in house.status()["nodes"]), "all serve again")
    with house.client() as client:
        client.ask(name, "and?", max_tokens=5)
    assert len(house.owners(name)) == 1
