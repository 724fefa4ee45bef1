"""Nodes on loopback, for tests: bare ones, and whole daemons on the fake engine."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmaas.api.wire import Frame
from llmaas.kvchunks.store.store import MasterKey, Store
from llmaas.nodes.identity import NodeIdentity, own_identity
from llmaas.nodes.listener import NodeListener, NodeSession
from llmaas.nodes.mover import NodeMover
from llmaas.nodes.pinned import PinnedNode, PinnedNodes
from llmaas.nodes.session import ArrivalHall
from tests.support.daemon import Daemon, serving

SOON = 20.0
Send = Callable[[Frame], Awaitable[None]]


class Echo:
    """Answers with what it was asked."""

    def __init__(self, node: PinnedNode) -> None:
        self.node = node

    async def answer(self, request: Frame, send: Send) -> Frame:
        return {"from": self.node.name, "asked": request}

    async def close(self) -> None:
        return None


@asynccontextmanager
async def listening(
    data_dir: Path, session: Callable[[PinnedNode], NodeSession] = Echo, port: int = 0
) -> AsyncIterator[NodeListener]:
    own, nodes = own_identity(data_dir), PinnedNodes(data_dir)
    listener = NodeListener(free_socket(port), own, nodes, session, lambda: {"model": "m"})
    try:
        yield listener
    finally:
        await asyncio.wait_for(listener.close(), SOON)


def free_socket(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(16)
    sock.setblocking(False)
    return sock


def free_port() -> int:
    """Not one that the kernel may give to a connection while the node is away."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def pin(data_dir: Path, name: str, other: NodeIdentity, address: str = "") -> PinnedNode:
    node = PinnedNode(name, other.certificate, address)
    PinnedNodes(data_dir).add(node)
    return node


class Cut:
    """Which requests of nodes are answered by the end of the connection: ``op``, before or after it was carried out."""

    def __init__(self) -> None:
        self.op, self.after, self.n_left = "", False, 0
        self.seen = list[str]()
        self.replies = list[Frame]()
        """To these."""

    def arm(self, op: str, *, after: bool, n: int = 1) -> None:
        self.op, self.after, self.n_left = op, after, n

    def session(self, inner: Callable[[PinnedNode], NodeSession], node: PinnedNode) -> NodeSession:
        return _CutSession(self, inner(node))


class _CutSession:
    def __init__(self, cut: Cut, inner: NodeSession) -> None:
        self._cut, self._inner = cut, inner

    async def answer(self, request: Frame, send: Send) -> Frame:
        cut, op = self._cut, request["op"]
        cut.seen.append(op)
        hit = cut.n_left > 0 and op == cut.op
        cut.n_left -= hit
        if hit and not cut.after:
            raise ConnectionResetError
        reply = await self._inner.answer(request, send)
        cut.replies.append(reply)
        if hit:
            raise ConnectionResetError
        return reply

    async def close(self) -> None:
        await self._inner.close()


@dataclass
class House:
    """A node with a whole daemon. ``cut``: of what others ask it."""

    daemon: Daemon
    data_dir: Path
    listener: NodeListener
    mover: NodeMover
    cut: Cut

    @property
    def own(self) -> NodeIdentity:
        return own_identity(self.data_dir)


def keyed(root: Path) -> Store:
    return Store(root, master=MasterKey(bytes(32)))


@asynccontextmanager
async def node_daemon(root: Path, port: int = 0, **options: Any) -> AsyncIterator[House]:
    async with serving(root, **{"store": keyed, **options}) as daemon:
        transfers, data_dir, cut = daemon.service.transfers, root / "data", Cut()
        session = partial(cut.session, ArrivalHall(transfers.arrivals).session)
        async with listening(data_dir, session, port) as listener:
            mover = NodeMover(transfers.departures, partial(own_identity, data_dir), PinnedNodes(data_dir))
            await mover.start()
            transfers.begin_moves(mover.move, daemon.service)
            try:
                yield House(daemon, data_dir, listener, mover, cut)
            finally:
                await asyncio.wait_for(mover.close(), SOON)


def pair(a: House, b: House, names: tuple[str, str] = ("phone", "desk")) -> None:
    pin(a.data_dir, names[1], b.own, b.listener.address)
    pin(b.data_dir, names[0], a.own, a.listener.address)


@asynccontextmanager
async def phone_and_desk(root: Path, **options: Any) -> AsyncIterator[tuple[House, House]]:
    async with node_daemon(root / "phone", **options) as phone, node_daemon(root / "desk", **options) as desk:
        pair(phone, desk)
        yield phone, desk
