"""Connections whose model is not in memory: kept until their clients send something, or go.

Law: nothing is read from them: what a client has sent is for the process that goes on with the connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from llmaas.api.handed import HandedConnection


class ParkedConnections:
    """``resume`` gets each connection that can be read. On the running event loop."""

    def __init__(self, resume: Callable[[HandedConnection], None]) -> None:
        self._resume = resume
        self._parked: set[HandedConnection] = set()

    def __len__(self) -> int:
        return len(self._parked)

    def add(self, handed: HandedConnection) -> None:
        handed.sock.setblocking(False)
        self._parked.add(handed)
        asyncio.get_running_loop().add_reader(handed.sock, self._readable, handed)

    def close(self) -> None:
        for handed in list(self._parked):
            self._remove(handed)
            handed.sock.close()

    def _readable(self, handed: HandedConnection) -> None:
        try:
            if handed.sock.recv(1, socket.MSG_PEEK):
                self._remove(handed)
                self._resume(handed)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._remove(handed)
        handed.sock.close()

    def _remove(self, handed: HandedConnection) -> None:
        self._parked.discard(handed)
        asyncio.get_running_loop().remove_reader(handed.sock)
