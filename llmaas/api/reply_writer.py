"""Writes the replies of one connection, and bounds what its peer leaves unread.

Law: a peer that does not read is dropped: when it has left ``write_buffer`` bytes unread, or has not read
``SMALL_FRAME`` bytes for ``write_s`` seconds while as many waited. What it leaves unread counts as held by its app.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from llmaas.api.frame_reader import SMALL_FRAME
from llmaas.api.peer_timer import PeerTimer
from llmaas.api.shares import Shares

log = logging.getLogger(__name__)


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
        self._timer: PeerTimer | None = None
        transport.set_write_buffer_limits(high=SMALL_FRAME)

    def move(self, shares: Shares) -> None:
        """Share with others from now on. Only before the app is known: nothing is unread until then."""
        self._limits, self._buffers = shares.limits, shares.buffers

    def use(self, transport: asyncio.Transport) -> None:
        """Write to this one from now on. Only while nothing is unread."""
        self._transport = transport
        transport.set_write_buffer_limits(high=SMALL_FRAME)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():  # the peer may go between two writes
            return
        self._transport.write(data)
        if self.paused:
            self._written += len(data)
            self._count(self._transport.get_write_buffer_size())
            if self.unread > self._limits.write_buffer:
                self._give_up("")

    def pause(self) -> None:
        self.paused, self._written = True, 0
        self._count(self._transport.get_write_buffer_size())
        self._watch()

    def resume(self) -> None:
        self.paused = False
        self._count(0)
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        """The connection is over: what waits to be read is counted no more."""
        self.resume()

    def _watch(self) -> None:
        before = self._written - self.unread
        self._timer = PeerTimer(self._limits.write_s, lambda: self._look(before))

    def _look(self, before: int) -> None:
        """Whether the peer has read enough since ``_watch``."""
        self._count(self._transport.get_write_buffer_size())
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
