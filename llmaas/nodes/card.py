"""The card of a node: its certificate in one line of text, which a person takes to another node.

Law: pure.

>>> NodeCard(b"certificate", "10.0.0.5:7411").text()
'llmaas-node-1:Y2VydGlmaWNhdGU@10.0.0.5:7411'
>>> read_card("llmaas-node-1:Y2VydGlmaWNhdGU").certificate
b'certificate'
>>> fingerprint(b"certificate")
'aplg3-ueigx-a4upy-srthk-zuptd'
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import reprlib

from llmaas.errors import BadRequest
from llmaas.frozen import frozen

_BEGIN = "llmaas-node-1:"
MOST_CERTIFICATE = 2048
"""Bytes. What this daemon makes has some 300."""
_HINT = "'llmaas node show' of the other machine prints its card, one line that begins with llmaas-node-1:"


@frozen
class NodeCard:
    """``address``: where the node listens, HOST:PORT; "" if it only begins connections."""

    certificate: bytes
    address: str = ""

    def text(self) -> str:
        coded = base64.urlsafe_b64encode(self.certificate).decode().rstrip("=")
        return _BEGIN + coded + (f"@{self.address}" if self.address else "")


def read_card(text: str) -> NodeCard:
    """Raises BadRequest. White space in it, as terminals and mail put it there, does no harm."""
    text = "".join(text.split())
    match = re.fullmatch(_BEGIN + r"([A-Za-z0-9_-]+)(?:@(.+))?", text)
    if match is None:
        raise BadRequest(f"{reprlib.repr(text)} is no card of a node", hint=_HINT)
    try:
        certificate = base64.b64decode(match[1] + "=" * (-len(match[1]) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise BadRequest("the card was cut off, or altered", hint=_HINT) from None
    if len(certificate) > MOST_CERTIFICATE:
        raise BadRequest(f"the card holds {len(certificate)} bytes; at most {MOST_CERTIFICATE} are allowed", hint=_HINT)
    return NodeCard(certificate, check_address(match[2]) if match[2] else "")


def check_address(text: str) -> str:
    """HOST:PORT, where HOST is a name, an IPv4 address, or an IPv6 address in brackets. Raises BadRequest."""
    match = re.fullmatch(r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", text)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise BadRequest(
            f"{reprlib.repr(text)} is no address of a node", hint="Give HOST:PORT, such as 192.168.1.5:7411."
        )
    return text


def host_and_port(address: str) -> tuple[str, int]:
    """
    >>> host_and_port("[::1]:7411")
    ('::1', 7411)
    """
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def fingerprint(certificate: bytes) -> str:
    """What two people compare: 125 bits of the certificate's SHA-256."""
    text = base64.b32encode(hashlib.sha256(certificate).digest()).decode().lower()[:25]
    return "-".join(text[i : i + 5] for i in range(0, 25, 5))
