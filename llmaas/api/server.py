"""The Unix socket server: it accepts connections on a path that it has taken, and ends cleanly.

Law: no other user but root can connect; when the server ends, every connection is told so and the socket is gone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmaas.api.acceptor import Acceptor
from llmaas.api.backend import Backend
from llmaas.api.caller import Door
from llmaas.api.connection import Connection
from llmaas.api.daemon_address import admin_socket
from llmaas.api.handed import HandedConnection
from llmaas.api.limits import DEFAULT_LIMITS, Limits
from llmaas.api.peer import peer_uid
from llmaas.api.shares import Shares
from llmaas.api.slot_opening import ServiceSlots
from llmaas.api.socket_file import SocketFile
from llmaas.calls import Loading
from llmaas.errors import LlmaasError
from llmaas.fair_thread import FairThread
from llmaas.records import AppId
from llmaas.slots.grants import NO_SLOTS, SlotSettings

__all__ = ["Backend", "Limits", "Server", "peer_uid", "serve", "serve_handed"]

log = logging.getLogger(__name__)

_CALLS_S = 2.0
"""Seconds that ``close`` waits for calls that it has cancelled, so that their replies say what was kept."""
_EVICT_S = 20.0
"""Seconds that an app's operations may still take when its connections have been ended."""
_SETTLE_S = 1.0
"""Seconds that ``close`` waits for operations that already run; their callers have been told that it ends."""


async def serve(
    backend: Backend,
    socket_path: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    uid_of: Callable[[socket.socket], int] = peer_uid,
    slots: SlotSettings = NO_SLOTS,
    loading: Callable[[], Loading | None] = lambda: None,
) -> Server:
    """Serve ``backend`` until ``close()`` on two sockets of mode 0600, in a directory that is made (0700) if absent:
    apps connect to ``socket_path``, the operator to ``admin_socket(socket_path)``. ``loading``: what is told to those
    whose requests run while the model's weights are on their way back to memory; None: they are there.

    Raises SocketInUse if a live daemon has the socket (one that a dead daemon left is replaced), NotTrusted if others
    may write to that directory, and ConfigError if the path cannot be used.
    """
    files = {Door.APPS: SocketFile(socket_path)}
    server = Server(backend, files, limits, uid_of, slots, loading)
    try:
        files[Door.ADMIN] = SocketFile(admin_socket(socket_path))
        server.start()
    except BaseException:
        for file in files.values():
            file.sock.close()
        await server.close()
        raise
    return server


def serve_handed(
    backend: Backend,
    *,
    limits: Limits = DEFAULT_LIMITS,
    slots: SlotSettings = NO_SLOTS,
    loading: Callable[[], Loading | None] = lambda: None,
) -> Server:
    """Serve ``backend`` until ``close()`` on connections that ``adopt`` is given, and on no socket."""
    return Server(backend, {}, limits, peer_uid, slots, loading)


class Server:
    """Serves the sockets of one daemon. Made by ``serve``, which may add files until ``start``."""

    def __init__(
        self,
        backend: Backend,
        files: dict[Door, SocketFile],
        limits: Limits,
        uid_of: Callable[[socket.socket], int],
        slots: SlotSettings = NO_SLOTS,
        loading: Callable[[], Loading | None] = lambda: None,
    ) -> None:
        self.backend, self.loading = backend, loading
        self.uid_of = uid_of
        self.connections: set[Connection] = set()
        self._decoder = FairThread("requests")
        self.shares = {
            door: Shares(each, self.connections, self._decoder)
            for door, each in ((Door.APPS, limits), (Door.ADMIN, limits.for_operator()))
        }
        """What apps do with their door takes nothing from the operator's."""
        self.tasks: set[asyncio.Task[Any]] = set()
        self.slots = ServiceSlots(slots)
        self.closing = False
        self._files = files
        self._acceptors: list[Acceptor] = []
        self._empty = asyncio.Event()
        backend.apps.on_evict(self.evict)

    def start(self) -> None:
        for door, file in self._files.items():
            acceptor = Acceptor(file.sock, functools.partial(Connection, self, door))
            acceptor.start()
            self._acceptors.append(acceptor)

    async def adopt(self, handed: HandedConnection) -> None:
        """Serve a connection that another process has accepted."""
        loop, make = asyncio.get_running_loop(), functools.partial(Connection, self, handed.door, handed)
        try:
            await loop.connect_accepted_socket(make, handed.sock)
        except (OSError, MemoryError) as error:
            log.warning("a connection was lost as it was handed over: %s", error)
            if handed.mark is not None:
                handed.mark.over(handed.sock)
            handed.sock.close()

    def detach_all(self) -> list[HandedConnection] | None:
        """Let go of all connections, for another process to go on with; None, and nothing is changed, while any of them
        is in use."""
        if self.tasks or not all(each.detachable for each in self.connections if each.is_open):
            return None
        detached = [each.detach() for each in list(self.connections) if each.is_open]
        return [each for each in detached if each is not None]

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def evict(self, app: AppId, error: LlmaasError) -> bool:
        """End the app's connections, and wait for what it has under way: a context that is being made would be there
        later. False if that takes too long."""
        for connection in list(self.connections):
            connection.evict(app, error)
        under_way = [task for task in self.tasks if task.get_name() == app]
        late = (await asyncio.wait(under_way, timeout=_EVICT_S))[1] if under_way else ()
        return not late

    async def close(self) -> None:
        """Stop: every running request fails with shutting_down, the sockets go away. Safe to call twice."""
        if self.closing:
            return
        self.closing = True
        for file in self._files.values():
            file.remove()
        for acceptor in self._acceptors:
            acceptor.close()
        calls = [call for connection in list(self.connections) for call in connection.wind_down()]
        if calls:
            await asyncio.wait(calls, timeout=_CALLS_S)
        for connection in list(self.connections):
            connection.shut_down()
        await asyncio.gather(self._all_gone(), self._settle())
        self._decoder.close(finish=False)
        for shares in self.shares.values():
            shares.close()
        for file in self._files.values():
            file.release()

    async def _all_gone(self) -> None:
        if self.connections:
            self._empty.clear()
            await self._empty.wait()

    async def _settle(self) -> None:
        if self.tasks:
            _, late = await asyncio.wait(self.tasks, timeout=_SETTLE_S)
            for task in late:
                task.cancel()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
