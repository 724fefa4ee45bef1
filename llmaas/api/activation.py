"""Sockets that the service manager has bound and hands over (sd_listen_fds(3)): the daemon is started by the first
client that connects, and those that come while it starts or restarts wait instead of failing.

Law: each socket is taken by the path or address that it is bound to, once; programs that this process starts get none.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

log = logging.getLogger(__name__)

_FIRST = 3
"""The first file descriptor that is handed over."""


class HandedOver:
    """The sockets that ``environ`` says this process was given. The variables are removed."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        pid, n = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
        environ.pop("LISTEN_FDNAMES", None)
        self._sockets: list[socket.socket] = []
        if pid != str(os.getpid()) or not n.isdigit():
            return
        for fd in range(_FIRST, _FIRST + int(n)):
            try:
                os.set_inheritable(fd, False)
                self._sockets.append(socket.socket(fileno=fd))
            except OSError as error:
                log.warning("file descriptor %d of the service manager is no socket: %s", fd, error.strerror)

    def take(self, path: Path) -> socket.socket | None:
        """The socket that listens on ``path``; None if there is none."""
        for sock in self._sockets:
            if _path(sock) == path.absolute():
                self._sockets.remove(sock)
                sock.setblocking(False)
                return sock
        return None

    def left(self) -> list[str]:
        """What the sockets that nobody has taken are bound to."""
        return [str(sock.getsockname()) for sock in self._sockets]


def _path(sock: socket.socket) -> Path | None:
    """Where a Unix socket listens; None for another one, and one that does not listen."""
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    name = sock.getsockname()
    return Path(name) if sock.family == socket.AF_UNIX and listens and isinstance(name, str) and name else None


@functools.cache
def handed_over() -> HandedOver:
    """Those of this process."""
    return HandedOver(os.environ)
