"""The sockets that the server listens on.

Law: the Unix socket can be reached by this user and root only, the TCP socket from this machine only, unless every
request must have a token.
"""

from __future__ import annotations

import ipaddress
import os
import socket

from llmaas.errors import ConfigError

BACKLOG = 128


def tcp_socket(address: str, *, tokens_required: bool = False) -> socket.socket:
    """A socket that listens on ``HOST:PORT``. Raises ConfigError if that cannot be had, or if other machines reach it
    and need no token.

    >>> with tcp_socket("127.0.0.1:0") as sock:
    ...     sock.getsockname()[0]
    '127.0.0.1'
    """
    host, _, port = address.rpartition(":")
    name = "127.0.0.1" if host == "localhost" else host.strip("[]")
    found = ipaddress.ip_address(name)
    if not (found.is_loopback or tokens_required):
        raise ConfigError(
            f"{address} can be reached from other machines, and nothing would keep them out",
            hint="Set http_tokens = \"required\" and give programs tokens ('llmaas app add NAME'), or use 127.0.0.1.",
        )
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    # With the protocol said, asyncio sets TCP_NODELAY on its connections: else the second packet of a response waits
    # for the peer to acknowledge the first, which takes Linux 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((name, int(port)))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot serve HTTP on {address}: {os.strerror(error.errno or 0)}",
            hint="Give another port with --http, or end the program that has it (ss -ltnp).",
        ) from None
    return sock
