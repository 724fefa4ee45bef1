"""The host's end: serves the daemon's two sockets, and passes each connection on to the guest by a channel of the line.

Law: a client on the host notices no difference to a daemon that runs there. Nobody reaches the guest before its hello
was read and its user vouched for; connections that say no hello are few, and the oldest gives way.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from struct import Struct

from llmaas.api import replies
from llmaas.api.acceptor import SEND_BUFFER, ConnectedAcceptor
from llmaas.api.caller import Door
from llmaas.api.daemon_address import admin_socket
from llmaas.api.frame_reader import SMALL_FRAME
from llmaas.api.in_flight import as_llmaas_error
from llmaas.api.peer import peer_uid
from llmaas.api.socket_file import SocketFile
from llmaas.api.wire import encode
from llmaas.errors import BadRequest, Busy, FrameTooLarge, LlmaasError, ShuttingDown
from llmaas.vm.line import Line
from llmaas.vm.relay import UNREAD_S, close_soon, relay
from llmaas.vm.slot_tap import SlotTap
from llmaas.vm.vouching import vouched

log = logging.getLogger(__name__)

HELLO_S = 10.0
"""Seconds within which a client must say hello."""
MOST_WAITING = 64
"""Connections that have not said hello yet; the oldest is dropped for the next."""
_LENGTH = Struct(">I")


class HostSide:
    """Serves ``socket_path`` and the operator's socket beside it from ``start`` to ``close``.

    Raises SocketInUse, NotTrusted and ConfigError as ``api.server.serve`` does.
    """

    def __init__(
        self,
        line: Line,
        socket_path: Path,
        *,
        uid_of: Callable[[socket.socket], int] = peer_uid,
        hello_s: float = HELLO_S,
        unread_s: float = UNREAD_S,
        slot_memories: Sequence[int] = (),
    ) -> None:
        """``slot_memories``: descriptors of what the guest's daemon has been lent for slots."""
        self._line, self._uid_of, self._hello_s, self._unread_s = line, uid_of, hello_s, unread_s
        self._slot_memories = slot_memories
        self._waiting: dict[asyncio.Task[None], None] = {}
        """Those that have not said hello, the oldest first."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptors: list[ConnectedAcceptor] = []
        self._files = _socket_files(socket_path)

    def start(self) -> None:
        for door, file in self._files.items():
            acceptor = ConnectedAcceptor(file.sock, functools.partial(self._begin, door))
            acceptor.start()
            self._acceptors.append(acceptor)

    async def close(self) -> None:
        """Take no more connections, and end those that there are."""
        for acceptor in self._acceptors:
            acceptor.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        _remove(self._files)

    def _begin(self, door: Door, sock: socket.socket) -> None:
        if len(self._waiting) >= MOST_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._serve(door, sock))
        self._tasks.add(task)
        self._waiting[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._waiting.pop(task, None)

    async def _serve(self, door: Door, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            reader, writer = await asyncio.open_unix_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            await self._greet(door, sock, reader, writer)
        except OSError as error:
            log.debug("a client has gone: %s", error)
        except Exception as error:
            writer.write(encode(replies.failed_frame(None, as_llmaas_error(error, "hello"))))
        finally:
            close_soon(writer)

    async def _greet(
        self, door: Door, sock: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        uid = self._uid_of(sock)
        try:
            body = await asyncio.wait_for(_first_body(reader), self._hello_s)
        except asyncio.TimeoutError:
            raise BadRequest(f"no hello within {self._hello_s:g} s") from None
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("it said no hello") from None
        to, hello = vouched(body, door, uid, os.geteuid())
        task = asyncio.current_task()
        if task is not None:
            self._waiting.pop(task, None)
        if self._line.is_over:
            raise _ended()
        channel = self._line.open(to.value)
        if channel is None:
            raise Busy("the virtual machine has too many connections", hint="Close connections that are not used.")
        try:
            await channel.send(hello)
        except BaseException:
            channel.close()
            raise
        await relay(channel, reader, writer, unread_s=self._unread_s, tap=SlotTap(self._slot_memories))


def require_sockets(socket_path: Path) -> None:
    """Raises what HostSide would, before a guest is started that nobody could reach."""
    _remove(_socket_files(socket_path))


def _socket_files(socket_path: Path) -> dict[Door, SocketFile]:
    files = {Door.APPS: SocketFile(socket_path)}
    try:
        files[Door.ADMIN] = SocketFile(admin_socket(socket_path))
    except BaseException:
        _remove(files)
        raise
    return files


def _remove(files: dict[Door, SocketFile]) -> None:
    for file in files.values():
        file.remove()
        file.sock.close()
        file.release()


async def _first_body(reader: asyncio.StreamReader) -> bytes:
    """The body of the first frame. Raises FrameTooLarge, IncompleteReadError."""
    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if size > SMALL_FRAME:
        raise FrameTooLarge(f"before the hello frames may have {SMALL_FRAME} bytes, not {size}")
    return await reader.readexactly(size)


def _ended() -> LlmaasError:
    return ShuttingDown("the virtual machine has ended")
