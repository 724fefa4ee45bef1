"""Bounds of a connection over HTTP, beneath uvicorn: how many there are, how large heads are, how long each may take.

Law: a peer that is slow or silent costs a bounded buffer for a bounded time, and gets an answer where one can still be
sent. What is bounded here never reaches an endpoint.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec

from llmaas.api.peer import peer_uid
from llmaas.http.identity import UNIX

MOST_CONNECTIONS = 256
MOST_HEAD = 32 << 10
"""Bytes of a request's head: its line and headers."""
HEAD_S = 10.0
"""Seconds within which a head must be complete, from the connection or from its first byte."""
SLOW_S = 30.0
"""Seconds for which a peer may leave a full write buffer unread."""
_LINGER_S = 1.0
_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
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
        self._refused = False
        self._last_cycle: object = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._slow_timer: asyncio.TimerHandle | None = None
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
        super().data_received(data)
        if self.cycle is not self._last_cycle:
            self._last_cycle, self._head_bytes = self.cycle, 0
            self._cancel_head_timer()
        elif self._between_requests() and not (self._refused or self.transport.is_closing()):
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD:
                self.refuse(431, f"the head of a request may have {MOST_HEAD} bytes. Send fewer or shorter headers.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        self._cancel_slow_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_timer = self.loop.call_later(SLOW_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel_slow_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls it for what is not HTTP."""
        self.refuse(400, "this is not a request of HTTP/1.1.")

    def refuse(self, status: int, message: str) -> None:
        """Answer without a request, and close."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": None}})
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self.transport.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + body)
        self._refused = True
        # What the peer still sends is read and discarded for a moment: a close at once would fail its writes before it
        # has read the answer.
        self.transport.write_eof()
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._head_too_late)

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
