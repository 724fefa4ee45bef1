"""One connection of the server: its socket, its hello, its end.

Law: a connection that ends, for whatever reason, cancels what it had running; and nothing that one peer sends or fails
to read harms another.

It is an asyncio protocol, and a streamed piece goes from ``emit`` to the socket in one call. Rejected: streams, whose
drain() needs a task per request; a queue per request, which only moves the reader that does not read elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from llmaas.api import replies
from llmaas.api.backend import Backend
from llmaas.api.bulk import Bulk
from llmaas.api.caller import Caller, Door, caller_of
from llmaas.api.frame_intake import FrameIntake
from llmaas.api.frame_reader import SMALL_FRAME
from llmaas.api.handed import HandedConnection
from llmaas.api.hello import Hello, read_hello, refuse_other_model, reply_frame
from llmaas.api.in_flight import InFlight, as_llmaas_error
from llmaas.api.incoming import Incoming, read_incoming
from llmaas.api.loading_teller import LoadingTeller
from llmaas.api.peer_timer import PeerTimer
from llmaas.api.reply_writer import ReplyWriter
from llmaas.api.shares import Shares
from llmaas.api.slot_message import OpenSlot
from llmaas.api.slot_opening import ServiceSlots
from llmaas.api.wire import MAX_REQUEST_VALUES, encode, read_body
from llmaas.calls import Loading
from llmaas.errors import BadRequest, BadToken, Busy, Forbidden, LlmaasError, ShuttingDown
from llmaas.records import AppId
from llmaas.slots.transport import SlotTransport
from llmaas.version import __version__

log = logging.getLogger(__name__)

_DRIP, _REST_S = 1024, 0.05
"""After so few bytes of a frame that is not complete, nothing is received for so long (seconds)."""
_CLOSING_S = 1.0
"""How long a connection that is over may still take to read its last reply."""


class ConnectionHost(Protocol):
    """The server, as a connection knows it."""

    backend: Backend
    shares: dict[Door, Shares]
    uid_of: Callable[[socket.socket], int]
    connections: set[Connection]
    tasks: set[asyncio.Task[Any]]
    slots: ServiceSlots
    loading: Callable[[], Loading | None]
    closing: bool

    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """Adds itself to the server's connections, and takes itself out when it is lost."""

    def __init__(self, server: ConnectionHost, door: Door, handed: HandedConnection | None = None) -> None:
        self._handed = handed
        self._mark = None if handed is None else handed.mark
        self._hello = b""
        """The body of the peer's hello."""
        self._server, self._door, self.shares = server, door, server.shares[door]
        self._limits = self.shares.limits
        self._loop = asyncio.get_running_loop()
        self._intake = FrameIntake(self, self.shares)
        self._requests: InFlight | None = None
        """None until the peer has said hello."""
        self._teller: LoadingTeller | None = None
        """If the peer wants to be told of loading."""
        self.app = ""
        """Who is at the other end; "" until the peer has said hello."""
        self._is_operator = False
        self._open = True
        """False once no more requests are taken and no more replies are written."""
        self._reading = True
        self._resting: asyncio.TimerHandle | None = None
        self._last_active = self._loop.time()
        self.has_asked = False
        """Whether there was a request after the hello."""
        self._writer: ReplyWriter
        self._transport: asyncio.Transport
        self._timer: PeerTimer | asyncio.TimerHandle
        self._uid: int

    # -- called by asyncio --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._writer = ReplyWriter(self._transport, self.shares, self.drop)
        self._timer = PeerTimer(self._limits.hello_s, self._too_late)
        self._server.connections.add(self)
        self.shares.places.enter(self)
        try:
            self._uid = self._server.uid_of(self._transport.get_extra_info("socket"))
        except OSError as e:
            self._end(Forbidden(f"the kernel does not tell who connects: {e.strerror}"))
        if self._server.closing:
            self.shut_down()
        elif self._handed is not None and self._open:
            try:
                self._requests = self._greet(self._handed.hello)
            except Exception as e:
                self.has_failed(e)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._mark is not None:
            self._mark.receiving()
        return self._intake.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if not self._open:
            return  # the last moments of a connection that is over
        self._intake.received(nbytes)
        self.shares.frames.ready(self)
        if nbytes < _DRIP and self._intake.incomplete:
            self._rest()
        self._read_or_not()

    def eof_received(self) -> None:
        self._abandon()
        self._close_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        if self._resting is not None:
            self._resting.cancel()
        self._abandon()
        self._writer.close()
        self.shares.places.leave(self)
        self._server.forget(self)
        if self._mark is not None:
            self._mark.over(self._transport.get_extra_info("socket"))

    def pause_writing(self) -> None:
        """The peer reads too slowly: take no more of its requests. If that goes on, it is dropped (``ReplyWriter``)."""
        self._writer.pause()
        self._intake.stop_clock()

    def resume_writing(self) -> None:
        self._writer.resume()
        self.frames_may_come()

    # -- frames -------------------------------------------------------------------------------

    def handle_next(self) -> bool:
        if not self._open or self._writer.paused or self._intake.held_up:
            return False
        if not self.shares.buffers.in_share(self.app):
            self._intake.wait_for_share()
            return False
        more, shares = False, self.shares
        try:
            more = self._intake.next()
        except Exception as e:
            self.has_failed(e)
        self._read_or_not()
        if self.shares is not shares:  # it waits for its turn among others from now on
            self.frames_may_come()
            return False
        more = more and self._open and self._intake.begun  # one that is incomplete takes no turn: nobody rests for it
        return self.handle_next() if more and self._intake.incomplete else more

    def take_body(self, body: bytes) -> None:
        self._last_active = self._loop.time()
        if self._requests is None:
            self._requests = self._greet(body)
        else:
            self.has_asked = True
            self._requests.take(read_incoming(body))
            if self._teller is not None:
                self._teller.asked()

    def take_large(self, incoming: Incoming, nbytes: int) -> None:
        assert self._requests is not None
        self.has_asked = True
        self._requests.take(incoming, nbytes)

    def frames_may_come(self) -> None:
        if self._open:
            self.shares.frames.later(self)

    def has_failed(self, error: Exception) -> None:
        self._end(as_llmaas_error(error, "hello" if self._requests is None else "frame"))

    def _read_or_not(self) -> None:
        """Receive from the peer, unless much of it has not been handled yet. Never stop because it does not read: the
        end of its stream would not be noticed."""
        wanted = self._intake.wants_more and self._resting is None
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _rest(self) -> None:
        """Receive nothing for a moment: a frame that comes byte by byte would take a turn of the loop for each."""
        if self._resting is None:
            self._resting = self._loop.call_later(_REST_S, self._rested)

    def _rested(self) -> None:
        self._resting = None
        self._read_or_not()

    def _greet(self, body: bytes) -> InFlight:
        """Answer the hello; what follows are requests of the app that it names."""
        hello = read_hello(read_body(body, MAX_REQUEST_VALUES))
        backend = self._server.backend
        caller = self._caller(hello)
        if hello.uid is not None or hello.token is not None:
            self._move_to(self._server.shares[Door.APPS])
        self.shares.places.seat(self, caller.uid, caller.app)
        self._timer.cancel()
        self.app, self._is_operator, self._user = caller.app, caller.is_operator, caller.uid
        self._writer.app = caller.app
        log.debug("hello from %s (%r)", caller.app, hello.client)
        limits = {
            "max_frame": self._limits.max_frame,
            "max_in_flight": self._limits.max_in_flight,
            "most_urgent": caller.allowed(0, None if caller.is_operator else backend.apps.most_urgent(caller.app)),
        }
        facts, self._hello = {**backend.hello(), "app": caller.app}, body
        if self._handed is None:
            refuse_other_model(hello.model, facts)
        if self._handed is None or self._handed.greet:
            self._write(encode(reply_frame(f"llmaas/{__version__}", limits, facts)))
        made = InFlight(backend, caller, self.shares, self._write, self._server.tasks, self._open_slot)
        if hello.told_of_loading:
            self._teller = LoadingTeller(self._server.loading, lambda: made.running, self._write)
        return made

    def _open_slot(self, request_id: int, request: OpenSlot) -> None:
        """Go on by shared memory, if the connection is at rest. Raises LlmaasError."""
        if not self.detachable:
            raise BadRequest("a slot is given to a connection at rest", hint="Ask for it before anything else.")
        transport = self._transport
        self._transport = self._server.slots.open(request_id, request, self, transport, self.app, self._user)
        self._writer.use(self._transport)
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if not self._reading:
            self._reading = True
            transport.resume_reading()
        if self._mark is not None:
            self._mark.leave()

    def _caller(self, hello: Hello) -> Caller:
        """Who says this hello. Who tries names or tokens of others is logged."""
        tokens = self._server.backend.apps
        try:
            return caller_of(
                self._uid,
                hello.app,
                self._door,
                self._limits,
                tokens=tokens,
                token=hello.token,
                on_behalf_of=hello.uid,
            )
        except BadToken as error:
            log.warning("a hello of user %d was refused: %s", self._uid, error.message)
            raise

    def _move_to(self, shares: Shares) -> None:
        """A connection that is an app's takes nothing of the operator's share, and all of it from the apps'."""
        self.shares.places.leave(self)
        self.shares, self._limits = shares, shares.limits
        self._intake.move(shares)
        self._writer.move(shares)
        shares.places.enter(self)

    def _write(self, data: Bulk) -> None:
        if not self._open:
            return
        self._last_active = self._loop.time()
        if self._mark is None:
            self._writer.write(data)
            return
        if len(data) > SMALL_FRAME or self._transport.get_write_buffer_size():
            self._mark.sending()
        self._writer.write(data)
        self._mark.settle(all_sent=not self._transport.get_write_buffer_size(), at_rest=False)

    # -- what others ask ----------------------------------------------------------------------

    @property
    def idle_since(self) -> float | None:
        return None if self._requests is not None and self._requests.running else self._last_active

    @property
    def stalled_bytes(self) -> int:
        return self._intake.stalled_bytes + self._writer.unread

    # -- another process goes on with it -----------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._open

    @property
    def detachable(self) -> bool:
        """Whether another process could go on with the connection, and the peer would not notice."""
        settled = self._requests is not None and not self._requests.running and self._intake.holds_nothing
        return self._open and settled and not self._transport.get_write_buffer_size()

    def settle_mark(self) -> None:
        """Let the process that keeps a copy of the socket know that all is sent, or that nothing runs; see ``Mark``."""
        if self._mark is not None and not self._mark.settled and self._open:
            self._mark.settle(all_sent=not self._transport.get_write_buffer_size(), at_rest=self.detachable)

    def detach(self) -> HandedConnection | None:
        """Let go of the socket, which stays open, if the connection is ``detachable``. One with a slot ends instead."""
        if isinstance(self._transport, SlotTransport):
            self._end(ShuttingDown("the model leaves memory, and the slot with it", hint="Connect again."))
            return None
        mark, self._mark = self._mark, None
        copy = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
        self._abandon()
        self._transport.abort()  # this ends asyncio's part in it, and closes the other descriptor
        return HandedConnection(self._door, copy, self._hello, greet=False, mark=mark)

    # -- the end ------------------------------------------------------------------------------

    def wind_down(self) -> list[asyncio.Future[Any]]:
        """The daemon is shutting down: take no more requests, and end those that run; see ``InFlight.wind_down``."""
        return [] if self._requests is None else self._requests.wind_down(_stopping())

    def shut_down(self) -> None:
        """Reply to everything that runs that the daemon is shutting down, and close."""
        error = _stopping()
        if self._requests is not None:
            self._requests.fail_all(error)
        self._write(encode(replies.failed_frame(None, error)))
        self._writer.write_all()
        self._abandon()
        self._transport.close()
        self._close_soon()

    def evict(self, app: AppId, error: LlmaasError) -> None:
        """End if it is the app's, and not the operator's: everything that runs fails with ``error``."""
        if self.app == app and not self._is_operator:
            if self._requests is not None:
                self._requests.fail_all(error)
            self._end(error)

    def give_way(self) -> None:
        """Another connection needs the place of this one, which is idle."""
        hint = "Connect again; close connections that are not used."
        self._end(Busy("the daemon has too many connections, and this one was idle for longest", hint=hint))

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
        self._writer.write_all()
        self._abandon()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._read_or_not()
        self._close_soon()

    def _too_late(self) -> None:
        self._end(BadRequest(f"no hello within {self._limits.hello_s:g} s"))

    def _close_soon(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(_CLOSING_S, self._transport.abort)

    def _abandon(self) -> None:
        self._open = False
        if self._teller is not None:
            self._teller.close()
        self._intake.close()
        self.shares.places.unseat(self)
        if self._requests is not None:
            self._requests.abandon()


def _stopping() -> ShuttingDown:
    return ShuttingDown("the daemon is shutting down")
