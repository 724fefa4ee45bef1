"""Messages between the front process and a model's process, with file descriptors: maps, one in each packet.

Law: sending never waits and never fails; what the other end does not take yet is kept. A descriptor that is given to
``send`` is closed here once it is sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack  # type: ignore[import-untyped,unused-ignore]

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 10
"""Of a message; a hello has 16 KiB at most."""
_BUFFER = 256 << 10
_AT_ONCE = 16
"""Messages that are read in one turn of the loop."""
Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a channel. Packets keep their borders, so that a descriptor stays with its message."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return ends


class Channel:
    """One end, on the running event loop. ``on_message`` gets each message, and a descriptor, which is its own then, if
    one came with it; ``on_end`` is called once, when the other end is gone. ``on_unsent`` gets what could not be sent,
    with its descriptor; without it that is closed."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message, int | None], None],
        on_end: Callable[[], None] = lambda: None,
        on_unsent: Callable[[Message, int | None], None] = lambda message, fd: _close(fd),
    ) -> None:
        self._sock, self._on_message, self._on_end = sock, on_message, on_end
        self._on_unsent = on_unsent
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Message, int | None]] = deque()
        self._open = True
        sock.setblocking(False)
        self._loop.add_reader(sock, self._read)

    def send(self, message: Message, fd: int | None = None) -> None:
        if not self._open:
            self._on_unsent(message, fd)
            return
        self._queue.append((message, fd))
        if len(self._queue) == 1:
            self._write()

    async def drained(self, seconds: float) -> None:
        """Return when all was sent; after ``seconds`` at the latest."""
        late = self._loop.time() + seconds
        while self._queue and self._open and self._loop.time() < late:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Idempotent."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)  # nothing is taken any more, whoever else may hold this end
        self._sock.close()
        while self._queue:
            self._on_unsent(*self._queue.popleft())

    def _write(self) -> None:
        while self._queue:
            message, fd = self._queue[0]
            try:
                socket.send_fds(self._sock, [msgpack.packb(message)], [] if fd is None else [fd])
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._write)
                return
            except OSError as error:
                log.debug("a message could not be sent: %s", error)
                self._queue.popleft()
                self._on_unsent(message, fd)
                continue
            self._queue.popleft()
            _close(fd)
        self._loop.remove_writer(self._sock)

    def read_rest(self) -> None:
        """Read all that has come: the other end sends nothing more."""
        while self._open and self._read_one():
            pass

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._open or not self._read_one():
                return

    def _read_one(self) -> bool:
        """False if there is no message."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, MOST_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError:
            return True  # the other end has closed, and had not read all: told once, before what it has sent
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            self._on_end()
            return False
        self._take(data, fds)
        return True

    def _take(self, data: bytes, fds: list[int]) -> None:
        for more in fds[1:]:
            _close(more)
        fd = fds[0] if fds else None
        try:
            message = msgpack.unpackb(data)
        except (ValueError, msgpack.UnpackException) as error:
            log.error("a message between processes cannot be read: %s", error)
            _close(fd)
            return
        self._on_message(message, fd)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
