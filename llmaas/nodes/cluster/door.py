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

from llmaas.errors import ConfigError, LlmaasError
from llmaas.nodes.cluster.states import NodePlace
from llmaas.nodes.identity import NodeIdentity, own_identity
from llmaas.nodes.link import end_tasks
from llmaas.nodes.listener import node_socket
from llmaas.nodes.pinned import PinnedNodes
from llmaas.nodes.tls import HANDSHAKE_S, server_side

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
        self._accepting = asyncio.ensure_future(self._accept())

    @property
    def address(self) -> str:
        host, port = self._sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def close(self) -> None:
        await end_tasks([self._accepting, *self._tasks])
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                log.warning("a connection cannot be accepted: %s", error.strerror)
                await asyncio.sleep(1)
                continue
            if len(self._tasks) >= MOST:
                sock.close()
                continue
            task = loop.create_task(self._connection(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _let_in(self) -> list[bytes]:
        """The certificates that count now: somebody may have been forgotten meanwhile."""
        return [node.certificate for name, node in self._nodes.read().items() if name in self._place.let_in]

    async def _connection(self, sock: socket.socket) -> None:
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            allowed = self._let_in()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = server_side(self._own, allowed)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except (ssl.SSLError, OSError, asyncio.TimeoutError, LlmaasError) as error:
            log.info("somebody was not let in: %s", error)
            sock.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
            if tls is None or tls.getpeercert(binary_form=True) not in allowed:
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


async def relay_both(
    a: tuple[asyncio.StreamReader, asyncio.StreamWriter], b: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
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
