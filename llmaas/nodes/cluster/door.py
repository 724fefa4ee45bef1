"""The door of a node: where entries on other machines reach its daemon, over TLS.

Law: who shows no certificate that is pinned here, and named as one to be let in, is refused in the handshake. Who is
let in is an app of the daemon's user, any of them, and never the operator: bytes go to the socket for apps only.
Connections are bounded, and an end of one side ends the other.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from pathlib import Path

from llmaas.api.acceptor import ConnectedAcceptor
from llmaas.errors import ConfigError, LlmaasError
from llmaas.nodes.cluster.states import NodePlace
from llmaas.nodes.identity import NodeIdentity, own_identity
from llmaas.nodes.link import end_tasks
from llmaas.nodes.listener import address_of, node_socket
from llmaas.nodes.pinned import PinnedNodes
from llmaas.nodes.tls import Streams, accepted, shown_certificate

log = logging.getLogger(__name__)

MOST = 128
"""Connections at once."""
_UNREAD_S = 60.0
_CLOSING_S = 1.0
_PIECE = 1 << 16


def open_door(place: NodePlace) -> NodeDoor:
    """For one event loop. Raises ConfigError, MachineError, UnknownNode."""
    if place.door is None or place.data_dir is None:
        raise ConfigError("a door needs an address, and the daemon's data folder, where its key is")
    if not place.let_in:
        raise ConfigError("a door lets nobody in", hint="Name paired nodes whose entries may come in: --let-in NODE.")
    data_dir = Path(place.data_dir)
    nodes = PinnedNodes(data_dir)
    for name in place.let_in:
        nodes.find(name)
    return NodeDoor(node_socket(place.door), own_identity(data_dir), nodes, place)


class NodeDoor:
    """Made by ``open_door``."""

    def __init__(self, sock: socket.socket, own: NodeIdentity, nodes: PinnedNodes, place: NodePlace) -> None:
        self._sock, self._own, self._nodes, self._place = sock, own, nodes, place
        self._tasks = set[asyncio.Task[None]]()
        self._acceptor = ConnectedAcceptor(sock, self._begin)
        self._acceptor.start()

    @property
    def address(self) -> str:
        return address_of(self._sock)

    async def close(self) -> None:
        self._acceptor.close()
        await end_tasks(self._tasks)

    def _begin(self, sock: socket.socket) -> None:
        if len(self._tasks) >= MOST:
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(self._connection(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _let_in(self) -> list[bytes]:
        """The certificates that count now: somebody may have been forgotten meanwhile."""
        return [node.certificate for name, node in self._nodes.read().items() if name in self._place.let_in]

    async def _connection(self, sock: socket.socket) -> None:
        try:
            allowed = self._let_in()
            reader, writer = await accepted(sock, self._own, allowed)
        except (ssl.SSLError, OSError, asyncio.TimeoutError, LlmaasError) as error:
            log.info("somebody was not let in: %s", error)
            sock.close()
            return
        try:
            if shown_certificate(writer) not in allowed:
                log.info("somebody was not let in: the certificate is not one of those")
                return
            inner = await asyncio.open_unix_connection(self._place.socket)
            await relay_both((reader, writer), inner)
        except OSError as error:
            log.info("a connection to the daemon has ended: %s", error)
        finally:
            _close_soon(writer)


def _close_soon(writer: asyncio.StreamWriter) -> None:
    """Close it when the peer has read what was written, or does not."""
    writer.close()
    asyncio.get_running_loop().call_later(_CLOSING_S, writer.transport.abort)


async def relay_both(a: Streams, b: Streams) -> None:
    """Pass bytes on, both ways, until either end is over; then both are."""
    ways = [asyncio.ensure_future(_pass_on(a[0], b[1])), asyncio.ensure_future(_pass_on(b[0], a[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(ways)
        for writer in (a[1], b[1]):
            _close_soon(writer)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_PIECE):
            writer.write(data)
            await asyncio.wait_for(writer.drain(), _UNREAD_S)
    except (OSError, asyncio.TimeoutError) as error:
        log.debug("a connection has ended: %s", error)
