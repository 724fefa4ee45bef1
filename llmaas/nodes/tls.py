"""TLS between nodes: both sides show certificates, and accept pinned ones only.

Law: TLS 1.3, and no certificate is accepted but the very bytes that were pinned: neither one that a pinned node has
signed, nor any that the system trusts. The server learns that before it reads a byte of what the peer says.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from llmaas.errors import MachineError
from llmaas.nodes.identity import NodeIdentity

HANDSHAKE_S = 10.0
"""A peer that has not ended its handshake by then is gone."""
ANY_NAME = "llmaas"
"""Certificates hold no names of hosts, and none is compared."""


def server_side(own: NodeIdentity, pinned: Iterable[bytes]) -> ssl.SSLContext:
    """Raises MachineError."""
    return _context(ssl.PROTOCOL_TLS_SERVER, own, pinned)


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
