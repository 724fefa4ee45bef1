"""TLS between nodes: both sides show certificates, and accept pinned ones only.

Law: TLS 1.3, and no certificate is accepted but the very bytes that were pinned: neither one that a pinned node has
signed, nor any that the system trusts. The server learns that before it reads a byte of what the peer says.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable

from llmaas.errors import MachineError
from llmaas.nodes.identity import NodeIdentity

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HANDSHAKE_S = 10.0
"""A peer that has not ended its handshake by then is gone."""
ANY_NAME = "llmaas"
"""Certificates hold no names of hosts, and none is compared."""


def server_side(own: NodeIdentity, pinned: Iterable[bytes]) -> ssl.SSLContext:
    """Raises MachineError."""
    return _context(ssl.PROTOCOL_TLS_SERVER, own, pinned)


async def accepted(sock: socket.socket, own: NodeIdentity, pinned: Iterable[bytes]) -> Streams:
    """A connection that has come, once the peer has shown one of these certificates. Raises SSLError, OSError,
    asyncio.TimeoutError, MachineError; the socket is the caller's then."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, sock, ssl=server_side(own, pinned), ssl_handshake_timeout=HANDSHAKE_S
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def shown_certificate(writer: asyncio.StreamWriter) -> bytes | None:
    """What the peer has shown."""
    tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
    return None if tls is None else tls.getpeercert(binary_form=True)


def client_side(own: NodeIdentity, pinned: bytes) -> ssl.SSLContext:
    """Raises MachineError."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, own, (pinned,))


def _context(side: int, own: NodeIdentity, pinned: Iterable[bytes]) -> ssl.SSLContext:
    context = _bare(side)
    try:
        context.load_cert_chain(own.path)
        _anchors(context, pinned)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise MachineError(f"the keys of this node or of a paired one cannot be used: {error}") from error
    return context


def _bare(side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _anchors(context: ssl.SSLContext, pinned: Iterable[bytes]) -> None:
    for certificate in pinned:
        context.load_verify_locations(cadata=certificate)
