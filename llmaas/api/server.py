"""The Unix socket server: it accepts connections on a path that it has taken, and ends cleanly.

Law: no other user but root can connect; when the server ends, every connection is told so and the socket is gone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmaas.api.acceptor import Acceptor
from llmaas.api.backend import Backend
from llmaas.api.connection import Connection
from llmaas.api.limits import DEFAULT_LIMITS, Limits
from llmaas.api.peer import peer_uid
from llmaas.api.socket_file import SocketFile

__all__ = ["Backend", "Limits", "Server", "peer_uid", "serve"]

_SETTLE_S = 5.0
"""Seconds that ``close`` waits for operations that already run."""


async def serve(
    backend: Backend,
    socket_path: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    uid_of: Callable[[socket.socket], int] = peer_uid,
) -> Server:
    """Serve ``backend`` until ``close()`` on a socket of mode 0600, whose directory is made (0700) if it is absent.

    Raises SocketInUse if a live daemon has the socket (one that a dead daemon left is replaced), NotTrusted if others
    may write to that directory, and ConfigError if the path cannot be used.
    """
    file = SocketFile(socket_path)
    server = Server(backend, file, limits, uid_of)
    try:
        server.start()
    except BaseException:
        file.sock.close()
        await server.close()
        raise
    return server


class Server:
    """Serves one socket. Made by ``serve``."""

    def __init__(
        self, backend: Backend, file: SocketFile, limits: Limits, uid_of: Callable[[socket.socket], int]
    ) -> None:
        self.backend = backend
        self.limits = limits
        self.uid_of = uid_of
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self._file: SocketFile | None = file
        self._acceptor: Acceptor | None = None
        self._empty = asyncio.Event()

    @property
    def closing(self) -> bool:
        return self._file is None

    def start(self) -> None:
        assert self._file is not None
        self._acceptor = Acceptor(self._file.sock, lambda: Connection(self))
        self._acceptor.start()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def close(self) -> None:
        """Stop: every running request fails with shutting_down, the socket goes away. Safe to call twice."""
        if self._file is None:
            return
        file, self._file = self._file, None
        file.remove()
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in list(self.connections):
            connection.shut_down()
        if self.connections:
            self._empty.clear()
            await self._empty.wait()
        if self.tasks:
            _, late = await asyncio.wait(self.tasks, timeout=_SETTLE_S)
            for task in late:
                task.cancel()
        file.release()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
