"""Who is at the other end of a Unix socket, and whether a client may trust it.

Law: the kernel says who it is (SO_PEERCRED, unix(7)), never the peer; a client sends nothing before it has asked.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from llmaas.errors import NotTrusted

_CREDENTIALS = struct.Struct("iII")
"""``struct ucred``: pid, uid, gid."""


def peer_uid(sock: socket.socket) -> int:
    """The uid at the other end. Of a server it is the user that began to listen. Raises OSError."""
    _pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def refuse_stranger(sock: socket.socket, path: Path, daemon_uid: int | None) -> None:
    """Raises NotTrusted unless the daemon runs as this user, as root, or as ``daemon_uid``.

    Rejected: to trust the owner of the socket's folder. Whoever takes a free name in /tmp first owns that too.
    """
    uid = peer_uid(sock)
    if uid not in (os.geteuid(), 0, daemon_uid):
        raise NotTrusted(
            f"whoever serves {path} runs as user {uid}, neither as you (user {os.geteuid()}) nor as root",
            hint=f"Nothing was sent. If that user is to run the daemon, give daemon_uid={uid} (--daemon-uid {uid}).",
        )
