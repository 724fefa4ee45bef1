"""The door of a node: who is let in is an app of its daemon, and nobody else gets a word."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmaas.api.wire import encode
from llmaas.errors import ConfigError, Forbidden, LlmaasError, NotTrusted, UnknownNode
from llmaas.nodes.cluster.door import NodeDoor, open_door
from llmaas.nodes.cluster.fleet import WayToNodes
from llmaas.nodes.cluster.node_connection import NodeConnection
from llmaas.nodes.cluster.states import NodePlace
from llmaas.nodes.identity import own_identity
from llmaas.nodes.pinned import PinnedNodes
from tests.support.loop import on_a_loop
from tests.support.node_house import SOON, House, node_daemon, pin

HELLO = {"op": "hello", "version": 1, "app": "mail"}


@asynccontextmanager
async def door_of(house: House, *let_in: str) -> AsyncIterator[tuple[NodeDoor, NodePlace]]:
    place = NodePlace("desk", str(house.daemon.socket), data_dir=str(house.data_dir), door="127.0.0.1:0", let_in=let_in)
    door = open_door(place)
    try:
        yield door, NodePlace("desk", "/not/here.sock", door=door.address)
    finally:
        await asyncio.wait_for(door.close(), SOON)


def introduce(house: House, data_dir: Path, name: str, address: str = "") -> None:
    """Pair the two with each other."""
    pin(house.data_dir, name, own_identity(data_dir))
    pin(data_dir, "desk", house.own, address)


@on_a_loop
async def test_who_is_let_in_speaks_with_the_daemon_as_an_app(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as house:
        introduce(house, tmp_path / "phone", "phone")
        async with door_of(house, "phone") as (_, place):
            way = WayToNodes(tmp_path / "phone")
            connection = await NodeConnection.open("desk", way.open(place), HELLO)
            made = await connection.ask({"op": "create", "name": "x"})
            assert made["result"]["name"] == "x"
            pieces = []

            async def piece(frame: object) -> None:
                pieces.append(frame)

            asked = {"op": "generate", "context": "x", "prompt": "hello", "max_tokens": 5}
            done = await connection.ask(asked, piece)
            assert (done["type"], len(pieces) > 0) == ("done", True)
            refused = await connection.ask({"op": "limit", "rate": 1.0})
            assert refused["code"] == Forbidden.code, "nobody is the operator by a door"
            await connection.close()


@on_a_loop
async def test_who_is_paired_and_not_named_is_not_let_in(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as house:
        introduce(house, tmp_path / "phone", "phone")
        introduce(house, tmp_path / "stranger", "stranger")
        async with door_of(house, "phone") as (_, place):
            for who in ("stranger", "nobody"):
                if who == "nobody":
                    pin(tmp_path / who, "desk", house.own)
                with pytest.raises((LlmaasError, ssl.SSLError)):
                    await NodeConnection.open("desk", WayToNodes(tmp_path / who).open(place), HELLO)
            connection = await NodeConnection.open("desk", WayToNodes(tmp_path / "phone").open(place), HELLO)
            await connection.close()
            PinnedNodes(house.data_dir).remove("phone")
            with pytest.raises((LlmaasError, ssl.SSLError)):
                await NodeConnection.open("desk", WayToNodes(tmp_path / "phone").open(place), HELLO)


@on_a_loop
async def test_an_entry_believes_no_door_but_that_of_the_pinned_certificate(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as house, node_daemon(tmp_path / "liar") as liar:
        introduce(house, tmp_path / "phone", "phone")
        pin(liar.data_dir, "phone", own_identity(tmp_path / "phone"))
        async with door_of(liar, "phone") as (_, place):
            with pytest.raises(NotTrusted, match="not the node desk"):
                await NodeConnection.open("desk", WayToNodes(tmp_path / "phone").open(place), HELLO)
        with pytest.raises(UnknownNode):
            other = NodePlace("shelf", "/not/here.sock", door="127.0.0.1:9")
            await WayToNodes(tmp_path / "phone").open(other)


@on_a_loop
async def test_the_end_of_either_side_ends_both(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as house:
        introduce(house, tmp_path / "phone", "phone")
        async with door_of(house, "phone") as (_, place):
            reader, writer = await WayToNodes(tmp_path / "phone").open(place)
            writer.write(encode({"op": "hello", "version": 99, "app": "mail"}))
            told = await asyncio.wait_for(reader.read(), SOON)
            assert b"version_mismatch" in told, "what the daemon said last has come"
            writer.close()
            connection = await NodeConnection.open("desk", WayToNodes(tmp_path / "phone").open(place), HELLO)
            asked = {"op": "generate", "context": "x", "prompt": "hello", "max_tokens": 900, "rate": 20.0}
            await connection.ask({"op": "create", "name": "x"})
            connection.begin(asked, _nothing)
            await connection.close()
        await house.daemon.until_idle()


async def _nothing(frame: object) -> None:
    return None


def test_a_door_without_a_key_or_a_guest_is_refused(tmp_path: Path) -> None:
    place = NodePlace("desk", "/d.sock", door="127.0.0.1:0", data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="nobody") as caught:
        open_door(place)
    assert "--let-in" in caught.value.hint
    with pytest.raises(ConfigError, match="data folder"):
        open_door(NodePlace("desk", "/d.sock", door="127.0.0.1:0", let_in=("phone",)))
    with pytest.raises(UnknownNode):
        open_door(NodePlace("desk", "/d.sock", door="127.0.0.1:0", data_dir=str(tmp_path), let_in=("phone",)))
