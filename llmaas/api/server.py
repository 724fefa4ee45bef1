"""The Unix socket server: it takes possession of a path, accepts connections, and ends cleanly.

Law: at most one daemon holds the path, by a lock that ends with its process; no other user but root can connect; a
socket that a dead daemon left is replaced, a live one never.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmaas.api.acceptor import Acceptor
from llmaas.api.backend import Backend
from llmaas.api.connection import Connection
from llmaas.api.limits import DEFAULT_LIMITS, Limits
from llmaas.errors import ConfigError, SocketInUse

__all__ = ["Backend", "Limits", "Server", "peer_uid", "serve"]

log = logging.getLogger(__name__)

_MAX_PATH = 107
"""Longest socket path in bytes: sun_path of unix(7), less its closing zero."""
_SETTLE_S = 5.0
"""Seconds that ``close`` waits for operations that already run."""


def peer_uid(sock: socket.socket) -> int:
    """The uid at the other end of a Unix socket, as the kernel knows it (SO_PEERCRED, unix(7))."""
    credentials = struct.Struct("iII")
    _pid, uid, _gid = credentials.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return int(uid)


async def serve(
    backend: Backend,
    socket_path: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    uid_of: Callable[[socket.socket], int] = peer_uid,
) -> Server:
    """Serve ``backend`` until ``close()`` on a socket of mode 0600, whose directory is made (0700) if it is absent.

    Raises SocketInUse if a live daemon has the socket (one that a dead daemon left is replaced), and ConfigError if the
    path cannot be used.
    """
    lock, sock = _claim(socket_path)
    server = Server(backend, socket_path, limits, uid_of, lock)
    try:
        server.start(sock)
    except BaseException:
        sock.close()
        await server.close()
        raise
    return server


class Server:
    """Serves one socket. Made by ``serve``."""

    def __init__(
        self, backend: Backend, socket_path: Path, limits: Limits, uid_of: Callable[[socket.socket], int], lock: int
    ) -> None:
        self.backend = backend
        self.socket_path = socket_path
        self.limits = limits
        self.uid_of = uid_of
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self._lock: int | None = lock
        self._inode = socket_path.stat().st_ino
        self._acceptor: Acceptor | None = None
        self._empty = asyncio.Event()

    @property
    def closing(self) -> bool:
        return self._lock is None

    def start(self, sock: socket.socket) -> None:
        self._acceptor = Acceptor(sock, lambda: Connection(self))
        self._acceptor.start()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def close(self) -> None:
        """Stop: every running request fails with shutting_down, the socket goes away. Safe to call twice."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        with contextlib.suppress(OSError):  # only our own socket: another may have been put in its place
            if self.socket_path.stat().st_ino == self._inode:
                self.socket_path.unlink()
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
        os.close(lock)

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# -- the socket's path ------------------------------------------------------------------------


def _claim(path: Path) -> tuple[int, socket.socket]:
    """The held lock (a file descriptor) and the bound socket."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ConfigError(
            f"the socket path {path} has {len(os.fsencode(path))} bytes; the system allows {_MAX_PATH}",
            hint="Choose a shorter path with --socket.",
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The lock file stays when the daemon ends: if it were deleted, one daemon could lock the deleted file while
        # another locks a new one.
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_stale(path)
            return lock, _bind(path)
        except BaseException:
            os.close(lock)
            raise
    except BlockingIOError:
        raise SocketInUse(f"another daemon holds {path}.lock") from None
    except OSError as e:
        raise ConfigError(f"cannot serve on {path}: {e.strerror or e}") from e


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket", hint="Give another path with --socket.")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            log.info("removing the socket that a dead daemon left: %s", path)
            path.unlink()
            return
        except OSError as e:
            raise SocketInUse(f"something holds {path}: {e.strerror or e}") from e
    raise SocketInUse(f"something answers on {path}")


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # a chmod after bind would leave a moment in which others may connect
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock
