"""A cluster in one process, for tests: whole daemons on the fake engine, their agents, a controller and an entry; all
of it but Ray."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmaas.api.async_client import AsyncClient
from llmaas.api.transfer_records import MovedContext
from llmaas.nodes.cluster.agent import NodeAgent
from llmaas.nodes.cluster.controller import PlacementController
from llmaas.nodes.cluster.entry import ClusterEntry
from llmaas.nodes.cluster.fleet import WayToNodes
from llmaas.nodes.cluster.states import (
    CallPlacement,
    ClusterRefusal,
    ContextMove,
    FoundContext,
    NodePlace,
    NodeState,
    NodeSummary,
    PlaceAsked,
)
from tests.support.node_house import House, node_daemon, pair

NAMES = ("attic", "barn", "cellar")


@dataclass
class LocalFleet:
    """Agents and a controller without Ray. ``sent``: where calls are sent, whatever the controller would say."""

    agents: dict[str, NodeAgent] = field(default_factory=dict)
    deaf: set[str] = field(default_factory=set)
    """Nodes whose agents do not answer."""
    sent: list[str] = field(default_factory=list)
    moves: list[ContextMove] = field(default_factory=list)
    controller: PlacementController = field(init=False)
    _at: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.controller = PlacementController(self)

    async def names(self) -> Sequence[str]:
        return list(self.agents)

    async def state(self, node: str, run: str, serial: int, marks: int, fresh: bool) -> NodeState | None:
        return None if node in self.deaf else await self.agents[node].state(run, serial, marks, fresh=fresh)

    async def nodes(self) -> Sequence[NodeSummary]:
        return await self.controller.nodes()

    async def look(self) -> None:
        await self.controller.look()

    async def locate(self, app: str, word: str) -> Sequence[FoundContext]:
        return await self.controller.locate(app, word)

    async def where(self, asked: PlaceAsked) -> CallPlacement | ClusterRefusal:
        answer = await self.controller.where(asked)
        if self.sent and isinstance(answer, CallPlacement):
            target = self.sent.pop(0)
            source = self._at.get((asked.app, asked.word), target)
            self._at[asked.app, asked.word or asked.name or ""] = target
            moves = () if source == target else (ContextMove(asked.app, asked.word, source, target),)
            return CallPlacement(target, moves=moves)
        return answer

    async def move(self, move: ContextMove) -> MovedContext | ClusterRefusal:
        self.moves.append(move)
        return await self.agents[move.source].move(move)


@dataclass
class Cluster:
    houses: dict[str, House]
    fleet: LocalFleet
    socket: Path

    @asynccontextmanager
    async def client(self, app: str = "mail", **options: Any) -> AsyncIterator[AsyncClient]:
        client = await AsyncClient.connect(self.socket, app=app, **options)
        try:
            yield client
        finally:
            await client.close()

    async def owners(self, name: str, app: str = "mail") -> list[str]:
        """The nodes whose daemons have a context of this name."""
        found = []
        for node, house in self.houses.items():
            async with house.daemon.connect(app) as client:
                if any(info.name == name for info in await client.contexts()):
                    found.append(node)
        return found


@asynccontextmanager
async def cluster(root: Path, names: Sequence[str] = NAMES, **options: Any) -> AsyncIterator[Cluster]:
    """Daemons that are paired with each other, and an entry to all of them."""
    async with AsyncExitStack() as stack:
        houses = {name: await stack.enter_async_context(node_daemon(root / name, **options)) for name in names}
        for one, other in itertools.combinations(names, 2):
            pair(houses[one], houses[other], (one, other))
        fleet = LocalFleet()
        stack.push_async_callback(fleet.controller.close)
        for name, house in houses.items():
            place = NodePlace(name, str(house.daemon.socket), data_dir=str(house.data_dir))
            fleet.agents[name] = NodeAgent(place)
            stack.push_async_callback(fleet.agents[name].close)
        entry = ClusterEntry(fleet, root / "entry.sock", WayToNodes(None))
        entry.start()
        stack.push_async_callback(entry.close)
        yield Cluster(houses, fleet, root / "entry.sock")
