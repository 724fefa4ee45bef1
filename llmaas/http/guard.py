"""Bounds of a connection over HTTP, beneath uvicorn: how many there are, how large heads are, how long each may take.

Law: a peer that is slow or silent costs a bounded buffer for a bounded time, and gets an answer where one can still be
sent. What is bounded here never reaches an endpoint.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from llmaas.api.peer import peer_uid
from llmaas.api.peer_timer import PeerTimer
from llmaas.http.errors import HttpError, shape_of
from llmaas.http.identity import UNIX

MOST_CONNECTIONS = 256
MOST_HEAD = 32 << 10
"""Bytes of a request's head: its line and headers."""
HEAD_S = 10.0
"""Seconds within which a head must be complete, from the connection or from its first byte."""
SLOW_S = 30.0
"""Seconds for which a peer may leave a full write buffer unread."""
_LINGER_S = 1.0
_READ = 256 << 10
"""Bytes that asyncio reads at once."""
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Guards(asyncio.Protocol):
    """Bounds on top of uvicorn's protocols, which have one interface; ``protocol_class`` joins them."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    client: tuple[str, int] | None
    connections: set[Any]
    cycle: Any
    """The last request whose head was complete, and its response; None before the first."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_bytes = 0
        """Bytes that came since the last head was complete or a body grew: the beginning of a head, or of trailers."""
        self._refused = False
        self._earlier: list[Any] = []
        """Requests before the last one that still run: the client did not wait for their responses."""
        self._last_cycle: Any = None
        self._head_timer: PeerTimer | asyncio.TimerHandle | None = None
        self._slow_timer: PeerTimer | None = None
        sock: socket.socket = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            try:
                self.client = (UNIX, peer_uid(sock))
            except OSError:
                self.transport.abort()
                return
        if len(self.connections) > MOST_CONNECTIONS:
            self.refuse(503, "there are too many connections. Close some that are not used, or try again later.")
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self._head_timer is None and self._between_requests():
            self._expect_head()
        n_body = 0 if self.cycle is None else len(self.cycle.body)
        super().data_received(data)
        if self.cycle is not self._last_cycle:
            self._last_cycle, self._head_bytes = self.cycle, 0
            self._cancel_head_timer()
        elif self.cycle is not None and len(self.cycle.body) > n_body:
            self._head_bytes = 0
        elif not (self._refused or self.transport.is_closing()):
            self._head_bytes += len(data)
            # What h11 has read and not looked at, while a response is sent, may be all that a read gave.
            if self._head_bytes > (MOST_HEAD if self._between_requests() else MOST_HEAD + _READ):
                self.refuse(431, f"the head of a request may have {MOST_HEAD} bytes. Send fewer or shorter headers.")

    def on_headers_complete(self) -> None:
        """httptools calls it; with h11 a request waits until the one before it has its response."""
        before = self.cycle
        super().on_headers_complete()  # type: ignore[misc]
        if before is not None and not before.response_complete:
            self._earlier = [*(each for each in self._earlier if not each.response_complete), before]

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        self._cancel_slow_timer()
        super().connection_lost(exc)
        self._end_requests()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_timer = PeerTimer(SLOW_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel_slow_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls it for what is not HTTP."""
        self.refuse(400, "this is not a request of HTTP/1.1.")

    def refuse(self, status: int, message: str) -> None:
        """Answer without a request, and close. Where a response has begun there is no place for another."""
        begun = any(cycle.response_started or cycle is not self.cycle for cycle in self._end_requests())
        if begun:
            self.transport.abort()
            return
        error = HttpError(status, message, retry=status >= 500)
        body = shape_of(self._path())(error)
        lines = [b"HTTP/1.1 %d %b" % (status, _REASONS[status]), b"content-type: application/json"]
        lines += [b"%b: %b" % header for header in error.headers()]
        lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
        self.transport.write(b"\r\n".join(lines))
        self._refused = True
        # What the peer still sends is read and discarded for a moment: a close at once would fail its writes before it
        # has read the answer.
        self.transport.write_eof()
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _path(self) -> str:
        """What the request asks for, as far as it has come; httptools tells it at once."""
        url: bytes = getattr(self, "url", None) or b""
        return url.decode("latin-1")

    def _end_requests(self) -> list[Any]:
        """Tell those that run that nobody waits for their responses."""
        cycles = [*self._earlier, *([] if self.cycle is None else [self.cycle])]
        running = [cycle for cycle in cycles if not cycle.response_complete]
        for cycle in running:
            cycle.disconnected = True
            cycle.message_event.set()
        return running

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head_timer = PeerTimer(HEAD_S, self._head_too_late)

    def _head_too_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.refuse(408, f"no request came within {HEAD_S:g} s.")

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_slow_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None


def protocol_class() -> type[Any]:
    """The protocol with httptools, which parses in C, if that is installed; else with h11."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Parsed
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Parsed  # type: ignore[assignment]
    return type("GuardedProtocol", (Guards, Parsed), {})
