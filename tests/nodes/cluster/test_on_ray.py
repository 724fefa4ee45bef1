"""A cluster on Ray as people use it: three daemons with stores of their own, and what dies is begun again."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from importlib.util import find_spec

import psutil
import pytest

from llmaas.api.client import Client
from llmaas.errors import LlmaasError, NodeUnreachable
from llmaas.nodes.cluster.states import cluster_id
from llmaas.records import CHUNK_TOKENS
from tests.support.daemon import answer_to
from tests.support.ray_house import NAMES, RayHouse

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra cluster", allow_module_level=True)
pytestmark = pytest.mark.timeout(600)
WORDS = "the tide comes in and the tide goes out " * 6


def test_nodes_join_and_are_listed(house: RayHouse) -> None:
    assert all("is in the cluster of" in said for said in house.said), house.said
    nodes = house.status()["nodes"]
    assert [(node["place"]["name"], node["serving"], node["model"]) for node in nodes] == [
        (name, True, "fake") for name in NAMES
    ]
    others = [[other for other in NAMES if other != name] for name in NAMES]
    # A node to which a move has failed is left alone for a minute, which other tests may have seen to.
    house.until(lambda: [sorted(node["links"]) for node in house.status()["nodes"]] == others, "all reach all")
    shown = house.run("status")
    assert shown.splitlines()[0].split()[:2] == ["NODE", "SERVES"]


def test_ray_listens_on_loopback_only_and_opens_no_dashboard(house: RayHouse) -> None:
    listens = {
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
        for process in house.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {name for name, _ in listens} >= {"raylet", "gcs_server"}
    assert {ip for _, ip in listens} <= {"127.0.0.1", "::1"}, listens
    dashboards = [each for each in house.processes() if any(word.endswith("dashboard.py") for word in each.cmdline())]
    assert not any(map(_listens, dashboards))


def _listens(process: psutil.Process) -> bool:
    return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("inet"))


def test_a_conversation_is_served_and_moves_through_the_entry(house: RayHouse) -> None:
    with house.client() as client:
        made = client.create(name="x")
        assert made.id == cluster_id("mail", "x")
        assert client.ask("x", "hello", max_tokens=8) == answer_to("hello")
        (at,) = house.owners("x")
        target = next(name for name in NAMES if name != at)
        assert client.move("x", target).node == target
        assert client.ask(made.id, "and?", max_tokens=8) == answer_to("hello", "and?")
        assert house.owners("x") == [target]
        told = {node["place"]["name"]: node["n_contexts"] for node in house.status()["nodes"]}
        for name, node in house.nodes.items():
            with node.client() as beside:
                assert told[name] == len(beside.contexts())


@pytest.mark.slow  # test_kills_on_ray kills both, too
@pytest.mark.parametrize("victim", ["agent", "controller"])
def test_an_actor_that_is_killed_is_begun_again_and_knows_what_the_daemons_know(house: RayHouse, victim: str) -> None:
    name = f"{victim}-dies"
    with house.client() as client:
        client.create(name=name)
        (at,) = house.owners(name)
        pid = house.agent_pid(at) if victim == "agent" else house.status()["controller_pid"]
        os.kill(pid, signal.SIGKILL)
        assert client.ask(name, "hello", max_tokens=8) == answer_to("hello")
        client.create(name=f"{name}-2")

    def is_another() -> bool:
        status = house.status()
        now = house.agent_pid(at) if victim == "agent" else status["controller_pid"]
        return bool(now != pid and all(node["serving"] for node in status["nodes"]))

    house.until(is_another, f"there is another {victim}")
    with house.client() as client:
        assert client.show(name).info.n_messages == 2


def test_a_daemon_that_is_killed_is_unreachable_until_it_is_back(house: RayHouse) -> None:
    with house.client() as client:
        for i in range(4):
            client.create(name=f"c{i}")
            client.ask(f"c{i}", "hello", max_tokens=8)
        (at,) = house.owners("c0")
        victim = house.nodes[at]
        victim.end(signal.SIGKILL)
        with pytest.raises(NodeUnreachable):
            client.ask("c0", "and?", max_tokens=8)
        with pytest.raises(LlmaasError):
            client.create(name="c0")
        house.until(lambda: not all(node["serving"] for node in house.status()["nodes"]), "it is missed")
        assert f"{at} does not serve" in house.run("status", code=1)
        client.create(name="meanwhile")
        victim.start()
        house.until(lambda: client.ask("c0", "and?", max_tokens=8) == answer_to("hello", "and?"), "it is back")
        assert house.owners("c0") == [at]


def test_an_entry_that_is_killed_loses_nothing(house: RayHouse) -> None:
    with house.client() as client:
        made = client.create(name="e")
        client.ask("e", "hello", max_tokens=8)
    assert house.entry is not None
    house.entry.kill()
    house.entry.wait()
    house.begin_entry()
    with house.client() as client:
        assert client.ask(made.id, "and?", max_tokens=8) == answer_to("hello", "and?")


def test_marks_of_conversations_are_told_through_ray(house: RayHouse) -> None:
    """Where calls go by them depends on how fast nodes are, which those of a test are not twice: test_controller.py has
    that, and test_entry.py."""
    for name in NAMES[1:]:
        context, system = f"begun-{name}", f"{name} of marks: {WORDS}{WORDS}"
        with house.nodes[name].client() as beside:
            beside.create(name=context, system=system)
            beside.ask(context, "hello", max_tokens=8)
            house.until(partial(is_coded, beside, context), "its chunks are coded")
        told = {node["place"]["name"]: node["n_marks"] for node in house.status()["nodes"]}  # asks all nodes now
        assert told[name] > 3
        with house.client() as client:
            client.create(name=f"made-{name}", system=system)
            assert client.show(f"made-{name}").info.n_tokens > 3 * CHUNK_TOKENS


def is_coded(client: Client, context: str) -> bool:
    indices = range(client.show(context).info.n_tokens // CHUNK_TOKENS)
    return len(client.export_chunks(context, indices).pieces) == len(indices)


def test_calls_of_many_clients_are_all_answered(house: RayHouse) -> None:
    wrong = list[object]()

    def talk(n: int) -> None:
        try:
            with house.client() as client:
                client.create(name=f"talk-{n}")
                said = list[str]()
                for word in ("one", "two", "three"):
                    said.append(word)
                    if client.ask(f"talk-{n}", word, max_tokens=8) != answer_to(*said):
                        wrong.append((n, word))
        except LlmaasError as error:
            wrong.append(error)

    threads = [threading.Thread(target=talk, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


def test_a_node_that_leaves_is_forgotten_and_brings_its_contexts_back(house: RayHouse) -> None:
    with house.client() as client:
        client.create(name="stays")
        (at,) = house.owners("stays")
        assert "has left" in house.run("leave", at)
        assert "no node" in house.run("leave", at, code=2)
        house.until(lambda: len(house.status()["nodes"]) == len(NAMES) - 1, "it is gone")
        with pytest.raises(LlmaasError):
            client.show("stays")
        house.join(at)
        house.until(lambda: client.ask("stays", "hello", max_tokens=8) == answer_to("hello"), "it is back")
    other = next(name for name in NAMES if name != at)
    said = house.run("join", at, "--socket", str(house.nodes[other].root / "d.sock"), code=2)
    assert "has joined already" in said and "leave" in said
