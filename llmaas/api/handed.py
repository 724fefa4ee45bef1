"""Connections that another process has accepted, and what that process can know of them if this one is killed.

Law: a mark never says that a connection is at rest, or at the border of a frame, when it is not: it is set before bytes
are received, or sent of which the kernel may take a part, and taken back afterwards. So whoever keeps a copy of the
socket can end the connection with a reason, or go on with it, whenever the process that serves it ends.

The marks are bytes of memory that both processes share, one for each connection: a process that is killed cannot say
anything, but its memory stays. Setting one costs 0.1 us for each reply.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import socket
from collections.abc import Callable

from llmaas.api.caller import Door
from llmaas.frozen import frozen

N_MARKS = 4096
"""Of one process. Connections beyond that many are not kept: they end with the process, without a reason."""


class Mark(enum.IntEnum):
    NEW = 0
    """The process has not looked at it yet."""
    AT_REST = 1
    """No request runs, and nothing is held of one."""
    IN_USE = 2
    """All that was sent are whole frames."""
    MID_FRAME = 3
    """Part of a frame may have been sent, and the rest not."""


class ConnectionMarks:
    """The marks of a process's connections: by index, as in a bytearray."""

    def __init__(self, fd: int) -> None:
        """In the shared memory ``fd``, which stays the caller's. Raises OSError."""
        self.memory = mmap.mmap(fd, N_MARKS)

    def __getitem__(self, number: int) -> Mark:
        return Mark(self.memory[number])

    def close(self) -> None:
        self.memory.close()


def marks_memory() -> int:
    """A descriptor of memory for ``ConnectionMarks``, all NEW. Raises OSError."""
    fd = os.memfd_create("llmaas-connections")
    try:
        os.truncate(fd, N_MARKS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class ConnectionMark:
    """The mark of one connection, in the process that serves it. ``gone`` is called when the connection is over."""

    def __init__(self, marks: ConnectionMarks, number: int, gone: Callable[[], None]) -> None:
        self._memory, self.number, self._gone = marks.memory, number, gone
        self._left = False

    @property
    def settled(self) -> bool:
        return self._memory[self.number] == Mark.AT_REST

    def receiving(self) -> None:
        """Bytes may be received from now on. An answer that is being sent stays what it is."""
        if self._memory[self.number] != Mark.MID_FRAME:
            self._memory[self.number] = Mark.IN_USE

    def sending(self) -> None:
        """Bytes are sent of which the kernel may take a part. What fits into one of its buffers (half of SO_SNDBUF, for
        Unix sockets) and waits behind nothing it takes whole or not at all: then this need not be called. A peer that
        reacts at once would else find the process between sending and ``settle``."""
        self._memory[self.number] = Mark.MID_FRAME

    def leave(self) -> None:
        """From now on nobody else can go on with the connection: it is in a slot of this process's memory."""
        self._left = True
        self.sending()

    def settle(self, *, all_sent: bool, at_rest: bool) -> None:
        """Nothing is being received or sent now, apart from what waits to be sent."""
        if self._left:
            return
        mark = Mark.MID_FRAME if not all_sent else Mark.AT_REST if at_rest else Mark.IN_USE
        self._memory[self.number] = mark

    def over(self, sock: socket.socket) -> None:
        """The connection is over: tell the peer, since another process keeps a copy of the socket."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        self._gone()


@frozen(eq=False)
class HandedConnection:
    """A connection that another process has accepted: the body of its hello, and whether that is to be answered."""

    door: Door
    sock: socket.socket
    hello: bytes
    greet: bool
    mark: ConnectionMark | None = None
    """If the other process keeps a copy of the socket."""
    told_of_loading: bool = False
    """Whether the peer wants to know how long its model takes to load."""
