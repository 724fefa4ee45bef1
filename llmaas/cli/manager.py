"""Tells the service manager that the daemon is ready, or stops.

Law: a manager that cannot be told is no reason to fail.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify_manager(state: str) -> None:
    """Send ``state`` to systemd (sd_notify(3)): one datagram to the socket that NOTIFY_SOCKET names, if any."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(state.encode())
    except OSError as error:
        log.warning("cannot notify the service manager at %r: %s", address, error)
