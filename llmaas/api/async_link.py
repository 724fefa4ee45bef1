"""The socket of an asynchronous client: the daemon's bytes to the session.

Law: a link that is lost, however it was, ends every exchange of its session.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import cast

from llmaas.api.client_session import Exchange, Session
from llmaas.api.peer import refuse_stranger
from llmaas.errors import NotServing

_RETRY_S = 0.01
"""Pause before another try to connect while as many callers wait to be accepted as the kernel keeps."""


class AsyncLink(asyncio.Protocol):
    """``transport`` is there once the connection is made."""

    transport: asyncio.Transport

    def __init__(self, session: Session, path: Path) -> None:
        self._session = session
        self._path = path
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._session.receive(data)
        if self._session.fault is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.lose(NotServing(f"the connection to the daemon at {self._path} was lost"))
        self._lost.set()

    async def hung_up(self, timeout: float) -> None:
        """Return when the connection is lost; after ``timeout`` seconds it is dropped."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._lost.wait(), timeout)
        self.transport.abort()

    async def close(self) -> None:
        """Drop the connection; what was not sent yet is discarded."""
        self.transport.abort()
        await self._lost.wait()


async def open_link(session: Session, path: Path, timeout: float, daemon_uid: int | None = None) -> AsyncLink:
    """Connect and say hello. Raises NotServing, also after ``timeout`` seconds, or what the daemon refuses with; and
    NotTrusted if the server is another user's than ``daemon_uid``, this user's or root's."""
    try:
        return await asyncio.wait_for(_open(session, path, daemon_uid), timeout)
    except asyncio.TimeoutError:
        raise NotServing(f"the daemon at {path} does not answer within {timeout:g} s") from None


async def _open(session: Session, path: Path, daemon_uid: int | None) -> AsyncLink:
    try:
        loop = asyncio.get_running_loop()
        sock = await _connected(path)
        transport, link = await loop.create_unix_connection(lambda: AsyncLink(session, path), sock=sock)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotServing(f"no daemon serves {path}") from None
    except OSError as e:
        raise NotServing(f"cannot connect to {path}: {e.strerror or e}") from e
    try:
        refuse_stranger(transport.get_extra_info("socket"), path, daemon_uid)
        changed = asyncio.Event()
        session.greeting.changed = changed.set
        transport.write(session.hello())
        await until_ended(session.greeting, changed)
        session.greeting.result()
    except BaseException:
        transport.abort()
        raise
    return link


async def _connected(path: Path) -> socket.socket:
    """asyncio's own way takes a socket as connected that is not, if many callers wait to be accepted."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(str(path))
                return sock
            except BlockingIOError:
                await asyncio.sleep(_RETRY_S)
    except BaseException:
        sock.close()
        raise


async def more(changed: asyncio.Event) -> None:
    """Return when more of an exchange has come, whose ``changed`` sets the event."""
    changed.clear()
    await changed.wait()


async def until_ended(exchange: Exchange, changed: asyncio.Event) -> None:
    while not exchange.ended:
        await more(changed)
