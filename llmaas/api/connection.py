"""One connection of the server: its socket, its hello, its end.

Law: a connection that ends, for whatever reason, cancels what it had running; and nothing that one peer sends or fails
to read harms another.

It is an asyncio.Protocol, and a streamed piece goes from ``emit`` to the socket in one call. Rejected: streams, whose
drain() needs a task per request; a queue per request, which only moves the reader that does not read elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from llmaas.api import replies
from llmaas.api.backend import Backend
from llmaas.api.caller import Door, caller_of
from llmaas.api.hello import read_hello, reply_frame
from llmaas.api.in_flight import InFlight, as_llmaas_error
from llmaas.api.limits import Limits
from llmaas.api.wire import Decoder, Frame, encode
from llmaas.errors import BadRequest, Busy, Forbidden, LlmaasError, ShuttingDown
from llmaas.version import __version__

log = logging.getLogger(__name__)

_CLOSING_S = 1.0
"""How long a connection that is over may still take to read its last reply."""


class ConnectionHost(Protocol):
    """The server, as a connection knows it."""

    backend: Backend
    limits: Limits
    uid_of: Callable[[socket.socket], int]
    connections: set[Connection]
    tasks: set[asyncio.Task[Any]]

    closing: bool

    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """Adds itself to the server's connections, and takes itself out when it is lost."""

    def __init__(self, server: ConnectionHost, door: Door) -> None:
        self._server = server
        self._door = door
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(server.limits.max_frame)
        self._waiting: deque[Frame] = deque()
        self._requests: InFlight | None = None
        """None until the peer has said hello."""
        self._open = True
        """False once no more requests are taken and no more replies are written."""
        self._paused = False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle
        self._uid: int
        self._peer = "a client that has not said hello"

    # -- called by asyncio --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer - self._limits.max_frame)
        self._timer = self._loop.call_later(self._limits.hello_s, self._too_late)
        full = len(self._server.connections) >= self._limits.max_connections
        self._server.connections.add(self)
        try:
            self._uid = self._server.uid_of(self._transport.get_extra_info("socket"))
        except OSError as e:
            self._end(Forbidden(f"the kernel does not tell who connects: {e.strerror}"))
        if self._server.closing:
            self.shut_down()
        elif full:
            self._end(Busy(f"the daemon serves {self._limits.max_connections} connections already"))

    def data_received(self, data: bytes) -> None:
        if not self._open:
            return  # the last moments of a connection that is over
        try:
            while frames := self._decoder.feed(data):
                self._waiting += frames
                data = b""
            self._take_waiting()
        except LlmaasError as e:
            self._take_waiting()
            self._end(e)

    def eof_received(self) -> None:
        self._abandon()
        self._close_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._abandon()
        self._server.forget(self)

    def pause_writing(self) -> None:
        """The peer reads too slowly: take no more of its requests. If the replies of those that run fill the write
        buffer, the peer is dropped."""
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._transport.resume_reading()
        self._take_waiting()

    # -- frames -------------------------------------------------------------------------------

    def _take_waiting(self) -> None:
        while self._waiting and self._open and not self._paused:
            frame = self._waiting.popleft()
            if self._requests is not None:
                self._requests.take(frame)
                continue
            try:
                self._requests = self._greet(frame)
            except Exception as e:
                self._end(as_llmaas_error(e, "hello"))

    def _greet(self, frame: Frame) -> InFlight:
        """Answer the hello; what follows are requests of the app that it names."""
        hello = read_hello(frame)
        caller = caller_of(self._uid, hello.app, self._door)
        self._timer.cancel()
        self._peer = caller.app
        log.debug("hello from %s (%r)", caller.app, hello.client)
        limits = {"max_frame": self._limits.max_frame, "max_in_flight": self._limits.max_in_flight}
        backend = self._server.backend
        self._write(encode(reply_frame(f"llmaas/{__version__}", limits, backend.hello())))
        return InFlight(backend, caller, self._limits, self._write, self._server.tasks)

    def _write(self, data: bytes) -> None:
        if not self._open or self._transport.is_closing():  # the peer may go between two writes
            return
        self._transport.write(data)
        if self._paused and (unread := self._transport.get_write_buffer_size()) > self._limits.write_buffer:
            log.warning("%s is dropped: it left %d bytes unread", self._peer, unread)
            self.drop()

    # -- the end ------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Reply to everything that runs that the daemon is shutting down, and close."""
        error = ShuttingDown("the daemon is shutting down")
        if self._requests is not None:
            self._requests.fail_all(error)
        self._write(encode(replies.failed_frame(None, error)))
        self._abandon()
        self._transport.close()
        self._close_soon()

    def drop(self) -> None:
        """Close at once, without a reply."""
        self._abandon()
        self._transport.abort()

    def _end(self, error: LlmaasError) -> None:
        """Reply why, and close. What the peer still sends is read and discarded for a moment: a close at once would
        fail its writes before it has read the reply."""
        if not self._open:
            return
        self._write(encode(replies.failed_frame(None, error)))
        self._abandon()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()
        self._close_soon()

    def _too_late(self) -> None:
        self._end(BadRequest(f"no hello within {self._limits.hello_s:g} s"))

    def _close_soon(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(_CLOSING_S, self._transport.abort)

    def _abandon(self) -> None:
        self._open = False
        self._waiting.clear()
        if self._requests is not None:
            self._requests.abandon()
