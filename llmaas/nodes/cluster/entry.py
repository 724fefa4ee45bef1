"""The entry of a cluster: the sockets of a daemon, behind which there are several.

Law: no other user but root can connect; connections are few enough to be counted. When it ends, every client is told.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from llmaas.api import replies
from llmaas.api.acceptor import SEND_BUFFER, ConnectedAcceptor
from llmaas.api.caller import Door
from llmaas.api.daemon_address import admin_socket
from llmaas.api.peer import peer_uid
from llmaas.api.socket_file import SocketFile
from llmaas.api.wire import encode
from llmaas.errors import Busy
from llmaas.nodes.cluster.beginnings import Beginnings
from llmaas.nodes.cluster.entry_connection import EntryConnection, EntryParts, FrameRoom
from llmaas.nodes.cluster.fleet import Fleet, WayToNodes
from llmaas.nodes.cluster.routing import Routing
from llmaas.nodes.link import end_tasks

log = logging.getLogger(__name__)

MOST_CLIENTS = 64
"""Connections at once. Each may have one to each node."""


class ClusterEntry:
    """Serves ``socket_path``, and the operator's socket beside it, from ``start`` to ``close``.

    Raises SocketInUse, NotTrusted and ConfigError as ``api.server.serve`` does.
    """

    def __init__(
        self,
        fleet: Fleet,
        socket_path: Path,
        way: WayToNodes,
        *,
        uid_of: Callable[[socket.socket], int] = peer_uid,
    ) -> None:
        self._parts = EntryParts(Routing(fleet), Beginnings(), way, FrameRoom())
        self._uid_of = uid_of
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptors: list[ConnectedAcceptor] = []
        self._files: dict[Door, SocketFile] = {}
        try:
            for door, path in ((Door.APPS, socket_path), (Door.ADMIN, admin_socket(socket_path))):
                self._files[door] = SocketFile(path)
        except BaseException:
            self._release()
            raise

    def start(self) -> None:
        for door, file in self._files.items():
            acceptor = ConnectedAcceptor(file.sock, functools.partial(self._begin, door))
            acceptor.start()
            self._acceptors.append(acceptor)

    async def close(self) -> None:
        """Take no more connections, and end those that there are."""
        for file in self._files.values():
            file.remove()
        for acceptor in self._acceptors:
            acceptor.close()
        await end_tasks(self._tasks)
        self._release()

    def _release(self) -> None:
        for file in self._files.values():
            file.remove()
            file.sock.close()
            file.release()
        self._files.clear()

    def _begin(self, door: Door, sock: socket.socket) -> None:
        if len(self._tasks) >= MOST_CLIENTS:
            error = Busy(f"{MOST_CLIENTS} clients use this entry already", hint="Close connections that are not used.")
            try:
                sock.send(encode(replies.failed_frame(None, error)))
            except OSError as failed:
                log.debug("a client could not be refused: %s", failed)
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(door, sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, door: Door, sock: socket.socket) -> None:
        try:
            uid = self._uid_of(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            streams = await asyncio.open_unix_connection(sock=sock)
        except OSError as error:
            log.debug("a connection was lost as it came: %s", error)
            sock.close()
            return
        await EntryConnection(self._parts, uid, door, streams).serve()
