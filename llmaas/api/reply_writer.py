"""Writes the replies of one connection, and bounds what its peer leaves unread.

Law: a peer that does not read is dropped: when it has left ``write_buffer`` bytes unread, or has not read
``SMALL_FRAME`` bytes for ``write_s`` seconds while as many waited. What it leaves unread counts as held by its app.

Of a large reply the transport gets a piece when it has sent the one before: what it cannot send at once it copies, and
moves whatever is left of that in memory each time that the socket takes some.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from llmaas.api.acceptor import SEND_BUFFER
from llmaas.api.bulk import Bulk
from llmaas.api.frame_reader import SMALL_FRAME
from llmaas.api.peer_timer import PeerTimer
from llmaas.api.shares import Shares

log = logging.getLogger(__name__)

WIDE_BUFFER = 1 << 20
"""Bytes that the kernel keeps of a large reply that is not read."""
PIECE = 1 << 18
"""Bytes that the transport gets at once."""


class ReplyWriter:
    """``drop`` ends the connection at once. ``app`` is who holds what is unread, "" before the hello."""

    def __init__(self, transport: asyncio.Transport, shares: Shares, drop: Callable[[], None]) -> None:
        self._transport, self._limits, self._buffers = transport, shares.limits, shares.buffers
        self._drop = drop
        self.app = ""
        self.paused = False
        """More than ``SMALL_FRAME`` bytes wait to be read by the peer."""
        self.unread = 0
        """The bytes that wait, while paused."""
        self._written = 0
        """Bytes that were written while paused."""
        self._left = deque[memoryview]()
        """What the transport has not been given yet, ``_n_left`` bytes of it; there is some only while paused."""
        self._n_left = 0
        self._timer: PeerTimer | None = None
        self._is_wide = False
        """The kernel keeps more of what the peer has not read than for other connections."""
        transport.set_write_buffer_limits(high=SMALL_FRAME)

    def move(self, shares: Shares) -> None:
        """Share with others from now on. Only before the app is known: nothing is unread until then."""
        self._limits, self._buffers = shares.limits, shares.buffers

    def use(self, transport: asyncio.Transport) -> None:
        """Write to this one from now on. Only while nothing is unread."""
        self._transport = transport
        transport.set_write_buffer_limits(high=SMALL_FRAME)

    def write(self, data: Bulk) -> None:
        if self._transport.is_closing():  # the peer may go between two writes
            return
        if self._left or len(data) > PIECE:
            view = memoryview(data)
            self._left.extend(view[at : at + PIECE] for at in range(0, len(view), PIECE))
            self._n_left += len(view)
            self._go_on()
        else:
            self._transport.write(data)
        if self.paused:
            self._written += len(data)
            self._count(self._waiting)
            self._widen()
            if self.unread > self._limits.write_buffer:
                self._give_up("")

    def write_all(self) -> None:
        """Give the transport all that is left: it is to be closed when it has sent that."""
        while self._left:
            self._transport.write(self._left.popleft())
        self._n_left = 0

    def pause(self) -> None:
        self.paused, self._written = True, 0
        self._count(self._waiting)
        self._widen()
        self._watch()

    def resume(self) -> None:
        self.paused = False
        if self._timer is not None:
            self._timer.cancel()
        self._go_on()
        if not self.paused:
            self._count(0)
            self._narrow()

    def close(self) -> None:
        """The connection is over: what waits to be read is counted no more."""
        self._left.clear()
        self._n_left = 0
        self.resume()

    @property
    def _waiting(self) -> int:
        return self._transport.get_write_buffer_size() + self._n_left

    def _go_on(self) -> None:
        while self._left and not self.paused:
            piece = self._left.popleft()
            self._n_left -= len(piece)
            self._transport.write(piece)

    def _widen(self) -> None:
        """Let a large reply go in few parts: a peer that reads takes it from another core meanwhile. What the kernel
        keeps counts as held by the app, so it is done as long as there is room."""
        if self.unread >= WIDE_BUFFER // 2 and not self._is_wide and self.app:
            self._is_wide = self._buffers.take(self.app, WIDE_BUFFER)
            if self._is_wide:
                self._have_kernel_keep(WIDE_BUFFER // 2)

    def _narrow(self) -> None:
        if self._is_wide:
            self._is_wide = False
            self._have_kernel_keep(SEND_BUFFER)
            self._buffers.give_back(self.app, WIDE_BUFFER)

    def _have_kernel_keep(self, nbytes: int) -> None:
        """Linux keeps twice as many."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):  # it has been closed
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, nbytes)

    def _watch(self) -> None:
        before = self._written - self.unread
        self._timer = PeerTimer(self._limits.write_s, lambda: self._look(before))

    def _look(self, before: int) -> None:
        """Whether the peer has read enough since ``_watch``."""
        self._count(self._waiting)
        if self._written - self.unread - before < SMALL_FRAME:
            self._give_up(f" for {self._limits.write_s:g} s")
        else:
            self._watch()

    def _count(self, unread: int) -> None:
        more, self.unread = unread - self.unread, unread
        if more > 0:
            self._buffers.take_anyway(self.app, more)
        elif more < 0:
            self._buffers.give_back(self.app, -more)

    def _give_up(self, how_long: str) -> None:
        log.warning("%s is dropped: it left %d bytes unread%s", self.app or "a client", self.unread, how_long)
        self._drop()
