"""The HTTP server: it listens, serves until it is told to stop, and ends gracefully.

Law: nothing is accepted once it stops; requests that run get ``grace_s`` to end, then a terminal answer each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import uvicorn

from llmaas.api.socket_file import SocketFile
from llmaas.http.access import Access, is_loopback
from llmaas.http.edge import OPEN, Edge
from llmaas.http.guard import protocol_class
from llmaas.http.listen import BACKLOG, tcp_socket
from llmaas.http.routes import application
from llmaas.http.served_models import ServedModels
from llmaas.socket_place import http_socket

log = logging.getLogger(__name__)

_IDLE_S = 30
"""Seconds that a connection may be idle between two requests."""
_LAST_S = 2
"""Seconds for the last bytes of the responses when all requests have ended."""


class EdgeServer(uvicorn.Server):
    """uvicorn's server without its signals, and without its ten wake-ups a second."""

    def __init__(self, edge: Edge, stop: asyncio.Event, grace_s: float, on_ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            application(edge),
            http=protocol_class(),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_LAST_S,
        )
        super().__init__(config)
        self._edge, self._stop, self._grace_s, self._on_ready = edge, stop, grace_s, on_ready

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self._on_ready()
        await self._stop.wait()
        self._edge.stopping = True
        if self._edge.running:
            await asyncio.wait(self._edge.running, timeout=self._grace_s)
        await self._edge.models.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_http(
    socket: Path,
    stop: asyncio.Event,
    *,
    address: str | None = None,
    access: Access = OPEN,
    daemon_uid: int | None = None,
    grace_s: float = 5.0,
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the daemon at ``socket`` until ``stop``, on the Unix socket beside it and on ``address`` (``HOST:PORT``),
    for whom ``access`` lets in.

    ``on_ready`` is called with the address in use (its port may have been 0), or "". Raises ConfigError, SocketInUse,
    NotTrusted.
    """
    file = SocketFile(http_socket(socket))
    try:
        tcp = [tcp_socket(address, tokens_required=access.tokens_required)] if address else []
        used = "{}:{}".format(*tcp[0].getsockname()[:2]) if tcp else ""
        log.info("HTTP on %s%s", file.path, f" and http://{used}" if used else "")
        if address and not is_loopback(address):
            access = replace(access, addresses=True)
            log.warning("others on the network can read what is sent to %s, tokens too: it is not encrypted", used)
        edge = Edge(ServedModels(socket, daemon_uid), access)
        await EdgeServer(edge, stop, grace_s, lambda: on_ready(used)).serve([file.sock, *tcp])
    finally:
        with suppress(OSError):
            file.sock.close()
        file.remove()
        file.release()
