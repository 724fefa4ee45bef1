"""Where other nodes reach this one: a TCP socket on which only paired nodes are heard.

Law: who shows no pinned certificate is refused in the handshake. Connections and requests of each node are bounded, and
whatever a node sends ends its own connection at most.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from llmaas.api.wire import Frame
from llmaas.errors import Busy, ConfigError, Internal, LlmaasError, VersionMismatch
from llmaas.nodes.card import host_and_port
from llmaas.nodes.identity import NodeIdentity
from llmaas.nodes.link import VERSION, NodeLink, end_tasks
from llmaas.nodes.pinned import PinnedNode, PinnedNodes
from llmaas.nodes.tls import accepted

log = logging.getLogger(__name__)

_HANDSHAKES = 16
"""Connections that have not shown who they are; more wait in the kernel's queue."""
_CONNECTIONS = 4
"""Of one node."""
_IDLE_S = 300.0


class NodeSession(Protocol):
    """What answers a connection's requests, one after the other."""

    async def answer(self, request: Frame, send: Callable[[Frame], Awaitable[None]]) -> Frame:
        """Raises LlmaasError, which is the reply then, and OSError to end the connection without one.
        ``send``: frames that go before the reply."""

    async def close(self) -> None:
        """The connection has ended."""


class NodeListener:
    """``session``: begins to answer a node; ``facts``: what a node is told first. For one event loop."""

    def __init__(
        self,
        sock: socket.socket,
        own: NodeIdentity,
        nodes: PinnedNodes,
        session: Callable[[PinnedNode], NodeSession],
        facts: Callable[[], Frame],
    ) -> None:
        self._sock, self._own, self._nodes, self._session, self._facts = sock, own, nodes, session, facts
        self._handshakes = asyncio.Semaphore(_HANDSHAKES)
        self._connections = Counter[str]()
        self._tasks = set[asyncio.Task[None]]()
        self._accepting = asyncio.ensure_future(self._accept())

    @property
    def address(self) -> str:
        return address_of(self._sock)

    async def close(self) -> None:
        await end_tasks([self._accepting, *self._tasks])
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._handshakes.acquire()
            try:
                sock, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                log.warning("a node's connection cannot be accepted: %s", error.strerror)
                await asyncio.sleep(1)  # no file may be left for it: others will close some
                self._handshakes.release()
                continue
            task = loop.create_task(self._connection(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connection(self, sock: socket.socket) -> None:
        try:
            try:
                pinned = [node.certificate for node in self._nodes.read().values()]
                link = NodeLink(*await accepted(sock, self._own, pinned))
            finally:
                self._handshakes.release()
        except (ssl.SSLError, OSError, asyncio.TimeoutError, LlmaasError) as error:
            log.info("a connection was refused: %s", error)
            sock.close()
            return
        except asyncio.CancelledError:
            sock.close()
            raise
        try:
            await self._serve(link)
        finally:
            await link.close()

    async def _serve(self, link: NodeLink) -> None:
        node = self._nodes.of_certificate(link.peer_certificate)
        if node is None:
            log.info("a connection was refused: its certificate is not pinned")
            return
        if self._connections[node.name] >= _CONNECTIONS:
            await link.send(_refusal(Busy(f"{_CONNECTIONS} connections of this node are there already")))
            return
        self._connections[node.name] += 1
        session = self._session(node)
        try:
            while True:
                request = await link.receive(_IDLE_S)
                if self._nodes.of_certificate(node.certificate) is None:
                    return  # forgotten meanwhile
                await link.send(await self._reply(session, request, link))
        except (OSError, EOFError, asyncio.TimeoutError, LlmaasError) as error:
            log.debug("the connection of node %s has ended: %s", node.name, error)
        finally:
            await session.close()
            self._connections[node.name] -= 1

    async def _reply(self, session: NodeSession, request: Frame, link: NodeLink) -> Frame:
        try:
            if request.get("op") == "hello":
                if request.get("version") != VERSION:
                    raise VersionMismatch(f"this node speaks version {VERSION} of what nodes say to each other")
                return self._facts()
            return await session.answer(request, link.send)
        except LlmaasError as error:
            failed = error
        except (OSError, asyncio.TimeoutError):  # of ``link.send``; or the session ends the connection
            raise
        except Exception:
            log.exception("a node's request failed")
            failed = Internal("the request failed")
        return _refusal(failed)


def _refusal(error: LlmaasError) -> Frame:
    return {"error": error.code, "message": error.message, "hint": error.hint}


def address_of(sock: socket.socket) -> str:
    """HOST:PORT on which it listens."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def node_socket(address: str) -> socket.socket:
    """A socket that listens on HOST:PORT. Raises ConfigError."""
    host, port = host_and_port(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"setting nodes: {address} is no address to listen on: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(_HANDSHAKES)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(f"setting nodes: cannot listen on {address}: {error.strerror}") from error
    return sock
