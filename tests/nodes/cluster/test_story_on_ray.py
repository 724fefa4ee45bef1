"""A story with the real model: a conversation goes through three daemons of a cluster while it is answered, and one of
them is killed; greedy at 16 bits, it is told as one daemon would have told it."""

from __future__ import annotations

import signal
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.calls import Terms
from llmaas.errors import LlmaasError
from llmaas.kvchunks.store import master_key
from llmaas.kvchunks.store.store import Store
from tests.support.node_house import free_port
from tests.support.ray_house import LATE, RayHouse, RealNode, ray_house

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra cluster", allow_module_level=True)
TURNS = (
    "Tell me a short story about a lighthouse keeper and her dog.",
    "What did the dog find on the beach?",
    "How does the story end?",
)


def told_by_one(root: Path) -> list[str]:
    """The conversation as one daemon tells it."""
    node = RealNode(root, free_port())
    node.start()
    try:
        with node.client() as client:
            client.create(name="story", system="You tell stories.")
            return [client.ask("story", turn, max_tokens=48) for turn in TURNS]
    finally:
        node.end(signal.SIGTERM)


def asked_while_it_moves(house: RayHouse, text: str, target: str) -> str:
    with house.client() as client, house.client() as other:
        stream = client.generate("story", text, max_tokens=48, terms=Terms(rate=12.0))
        moving = threading.Thread(target=other.move, args=("story", target))
        told = ""
        for piece in stream:
            if not told:
                moving.start()
            told += piece.text
        moving.join(LATE)
        assert not moving.is_alive()
        return told


def until_owner(client: Client, house: RayHouse, wanted: str) -> None:
    house.until(lambda: house.owners("story") == [wanted], f"{wanted} has the story")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_story_is_told_by_three_daemons_as_by_one(tmp_path: Path, gguf: Path) -> None:
    expected = told_by_one(tmp_path / "alone")
    with ray_house(make=RealNode) as house:
        with house.client() as client:
            client.create(name="story", system="You tell stories.")
            (at,) = house.owners("story")
            second, third = (name for name in house.nodes if name != at)
            assert asked_while_it_moves(house, TURNS[0], second) == expected[0]
            until_owner(client, house, second)
            assert asked_while_it_moves(house, TURNS[1], third) == expected[1]
            until_owner(client, house, third)
            house.nodes[third].end(signal.SIGKILL)
            with pytest.raises(LlmaasError):
                client.ask("story", TURNS[2], max_tokens=48)
            house.nodes[third].start()
            house.until(lambda: client.show("story").info.n_messages == 5, "it is back")
            assert client.ask("story", TURNS[2], max_tokens=48) == expected[2]
            assert house.owners("story") == [third]
        roots = [node.root / "data" for node in house.nodes.values()]
        for node in house.nodes.values():
            assert node.end(signal.SIGTERM) == 0
            node.process = None
        for root in roots:
            key = master_key.find(root, "file", {}, make=False)
            with Store(root, master=key.key if key else None) as store:
                assert store.check().problems == ()
