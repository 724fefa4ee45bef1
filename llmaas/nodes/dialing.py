"""Connections that are begun to a node, over TLS.

Law: nothing is said to anybody but the node whose certificate is pinned here, byte by byte; one that the node has
signed is another's. Whatever is waited for has an end.
"""

from __future__ import annotations

import asyncio
import ssl

from llmaas.errors import NodeUnreachable, NotTrusted
from llmaas.nodes.card import host_and_port
from llmaas.nodes.identity import NodeIdentity
from llmaas.nodes.tls import ANY_NAME, HANDSHAKE_S, Streams, client_side, shown_certificate

CONNECT_S = 10.0


async def dialed(own: NodeIdentity, name: str, certificate: bytes, address: str) -> Streams:
    """A connection to the node ``name`` at HOST:PORT. Raises NodeUnreachable, NotTrusted, MachineError."""
    host, port = host_and_port(address)
    context = client_side(own, certificate)
    try:
        opening = asyncio.open_connection(
            host, port, ssl=context, server_hostname=ANY_NAME, ssl_handshake_timeout=HANDSHAKE_S
        )
        reader, writer = await asyncio.wait_for(opening, CONNECT_S + HANDSHAKE_S)
    except ssl.SSLCertVerificationError:
        raise _impostor(name, address) from None
    except (OSError, asyncio.TimeoutError) as error:
        raise NodeUnreachable(f"the node {name} does not answer at {address}: {why_lost(error)}") from error
    if shown_certificate(writer) != certificate:
        writer.transport.abort()
        raise _impostor(name, address)
    return reader, writer


def _impostor(name: str, address: str) -> NotTrusted:
    return NotTrusted(
        f"what answers at {address} is not the node {name}",
        hint="If that node has a new key, pair with it again; else somebody is in its place.",
    )


def why_lost(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
