"""What an entry wants of the cluster: where contexts and calls go, and the way to each node.

Law: types, and the way to a node's daemon: by its socket on the entry's own machine, else by its door, over TLS, to the
certificate that this node has pinned. What the cluster says of a node is never believed in place of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llmaas.api.peer import refuse_stranger
from llmaas.api.transfer_records import MovedContext
from llmaas.errors import NodeUnreachable
from llmaas.nodes.card import check_address
from llmaas.nodes.cluster.states import (
    CallPlacement,
    ClusterRefusal,
    ContextMove,
    FoundContext,
    NodePlace,
    NodeSummary,
    PlaceAsked,
)
from llmaas.nodes.dialing import dialed
from llmaas.nodes.identity import own_identity
from llmaas.nodes.pinned import PinnedNodes
from llmaas.nodes.tls import Streams


class Fleet(Protocol):
    """The cluster, as an entry asks it. All raise NodeUnreachable if the cluster does not answer in time."""

    async def nodes(self) -> Sequence[NodeSummary]: ...

    async def look(self) -> None:
        """Have all nodes asked now."""

    async def locate(self, app: str, word: str) -> Sequence[FoundContext]: ...

    async def where(self, asked: PlaceAsked) -> CallPlacement | ClusterRefusal: ...

    async def move(self, move: ContextMove) -> MovedContext | ClusterRefusal: ...


class WayToNodes:
    """``data_dir``: of the entry's own node, with its key and the nodes that it is paired with; None: it has none, and
    reaches nodes on its own machine only."""

    def __init__(self, data_dir: Path | None) -> None:
        self._data_dir = data_dir

    async def open(self, place: NodePlace) -> Streams:
        """Raises OSError, NodeUnreachable, NotTrusted, UnknownNode, MachineError, BadRequest for a door that is no
        address."""
        if place.door is not None and self._data_dir is not None:
            return await self._through_door(place)
        if not Path(place.socket).exists():
            raise NodeUnreachable(
                f"the node {place.name} serves {place.socket}, which is not on this machine",
                hint=f"Let it join with a door ('llmaas cluster join {place.name} --door HOST:PORT --let-in NODE').",
            )
        reader, writer = await asyncio.open_unix_connection(place.socket)
        try:
            refuse_stranger(writer.get_extra_info("socket"), Path(place.socket), place.daemon_uid)
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer

    async def _through_door(self, place: NodePlace) -> Streams:
        assert self._data_dir is not None and place.door is not None
        check_address(place.door)
        pinned = PinnedNodes(self._data_dir).find(place.name)
        return await dialed(own_identity(self._data_dir), place.name, pinned.certificate, place.door)
