"""Accepts connections on a listening socket, a few in each turn of the event loop.

Law: whatever accept() says, the loop goes on: when the process has no file descriptor or memory left for a connection,
accepting pauses, and callers wait in the socket's backlog.

Rejected: asyncio's own servers. They accept up to a hundred connections in one turn of the loop, and in Python 3.11
each failure with EMFILE is tried a hundred times and logged with a traceback (30 MB of log in 100 s).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

BACKLOG = 128
"""Connections that the kernel keeps until they are accepted."""
AT_ONCE = 8
"""Connections accepted in one turn of the loop, at most."""
SEND_BUFFER = 32 << 10
"""Bytes that the kernel is asked to keep of what a peer has not read; Linux keeps twice as many. By itself it keeps
200 KB for each connection, which nobody counts, and which 240 peers that do not read had filled for them."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Pause after a failure; each further one doubles it."""


class ConnectedAcceptor:
    """Listens on ``sock`` from ``start`` to ``close``; ``on_socket`` gets the socket of each connection."""

    def __init__(self, sock: socket.socket, on_socket: Callable[[socket.socket], None]) -> None:
        self._sock, self._on_socket = sock, on_socket
        self._loop = asyncio.get_running_loop()
        self._pause_s = FIRST_PAUSE_S
        self._resume: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._sock.setblocking(False)
        self._sock.listen(BACKLOG)
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Accept no more. Connections that were accepted go on."""
        if self._resume is not None:
            self._resume.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                accepted, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except (OSError, MemoryError) as e:
                self._pause(e)
                return
            self._pause_s = FIRST_PAUSE_S
            accepted.setblocking(False)
            self._on_socket(accepted)

    def _pause(self, error: Exception) -> None:
        """The kernel says that the socket can be read for as long as somebody waits: look again later, not at once."""
        log.warning("cannot accept connections for now: %s", error)
        self._loop.remove_reader(self._sock)
        self._resume = self._loop.call_later(self._pause_s, self._loop.add_reader, self._sock, self._accept)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


class Acceptor(ConnectedAcceptor):
    """As that; ``make`` makes the protocol of each connection."""

    def __init__(self, sock: socket.socket, make: Callable[[], asyncio.BaseProtocol]) -> None:
        super().__init__(sock, self._begin)
        self._make = make
        self._connecting: set[asyncio.Task[None]] = set()

    def _begin(self, accepted: socket.socket) -> None:
        task = self._loop.create_task(self._connect(accepted))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            await self._loop.connect_accepted_socket(self._make, accepted)
        except (OSError, MemoryError) as e:
            log.warning("a connection was lost as it came: %s", e)
            accepted.close()
