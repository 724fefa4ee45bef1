"""Nodes on loopback, for tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from llmaas.api.wire import Frame
from llmaas.nodes.identity import NodeIdentity, own_identity
from llmaas.nodes.listener import NodeListener, NodeSession
from llmaas.nodes.pinned import PinnedNode, PinnedNodes


class Echo:
    """Answers with what it was asked."""

    def __init__(self, node: PinnedNode) -> None:
        self.node = node

    async def answer(self, request: Frame) -> Frame:
        return {"from": self.node.name, "asked": request}

    async def close(self) -> None:
        return None


@asynccontextmanager
async def listening(data_dir: Path, session: Callable[[PinnedNode], NodeSession] = Echo) -> AsyncIterator[NodeListener]:
    listener = NodeListener(
        free_socket(), own_identity(data_dir), PinnedNodes(data_dir), session, lambda: {"model": "m"}
    )
    try:
        yield listener
    finally:
        await asyncio.wait_for(listener.close(), 20)


def free_socket() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(16)
    sock.setblocking(False)
    return sock


def pin(data_dir: Path, name: str, other: NodeIdentity, address: str = "") -> PinnedNode:
    node = PinnedNode(name, other.certificate, address)
    PinnedNodes(data_dir).add(node)
    return node
