"""Whom the server lets in, as its settings say it.

Law: values only.
"""

from __future__ import annotations

import ipaddress

from llmaas.frozen import frozen


@frozen
class Access:
    """The defaults let every program of this machine in, and nobody else."""

    tokens_required: bool = False
    """Every request must have the token of an app."""
    hosts: frozenset[str] = frozenset()
    """Names, in small letters, that this server may be called by, besides those of this machine itself."""
    addresses: bool = False
    """It may be called by any address, since it is served on one that other machines reach."""

    def allows(self, host: str) -> bool:
        """Whether a request may call the server by this name or address, which has no port.

        >>> Access(hosts=frozenset({"box.lan"})).allows("Box.lan."), Access().allows("192.168.1.2")
        (True, False)
        """
        name = host.strip("[]").rstrip(".").lower()
        if name in self.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.addresses or address.is_loopback


def is_loopback(address: str) -> bool:
    """Whether ``HOST:PORT`` can be reached from this machine alone. ``HOST`` is an address or "localhost".

    >>> is_loopback("127.0.0.1:80"), is_loopback("[::1]:80"), is_loopback("0.0.0.0:80")
    (True, True, False)
    """
    host = address.rpartition(":")[0].strip("[]")
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
