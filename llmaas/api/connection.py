"""One connection of the server.

Law: every request gets exactly one terminal reply while its connection lives; a connection that ends, for whatever
reason, cancels what it had running; and nothing that one peer sends or fails to read harms another.

It is an asyncio.Protocol, and a streamed piece goes from ``emit`` to the socket in one call. Rejected: streams, whose
drain() needs a task per request; a queue per request, which only moves the reader that does not read elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol, cast

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.backend import Backend, Limits
from llmaas.api.record_maps import to_map
from llmaas.api.wire import Decoder, Frame, encode
from llmaas.calls import CallSpec, Piece
from llmaas.errors import BadRequest, Busy, Cancelled, Forbidden, Internal, LlmaasError, ShuttingDown, UnknownRequest
from llmaas.records import AppId, RequestId
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

    @property
    def closing(self) -> bool: ...

    def forget(self, connection: Connection) -> None: ...


@dataclass(slots=True, eq=False)
class _RunningRequest:
    """A request without its terminal reply. ``call`` is the backend's id of it, if it can be cancelled."""

    op: str
    call: RequestId | None = None
    over: bool = False


class Connection(asyncio.Protocol):
    def __init__(self, server: ConnectionHost) -> None:
        self._server = server
        self._limits = server.limits
        self._backend = server.backend
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(server.limits.max_frame)
        self._waiting: deque[Frame] = deque()
        self._runs: dict[int, _RunningRequest] = {}
        self._uid = -1
        self._app: AppId | None = None
        self._open = True
        self._paused = False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    # -- what asyncio tells

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
            self._work()
        except LlmaasError as e:
            self._work()
            self._end(e)

    def eof_received(self) -> None:
        self._abandon()
        self._closing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._abandon()
        self._server.forget(self)

    def pause_writing(self) -> None:
        """The peer reads too slowly: take no more of its requests. If those that run say too much, it is dropped."""
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._transport.resume_reading()
        self._work()

    # -- requests

    def _work(self) -> None:
        while self._waiting and self._open and not self._paused:
            self._take(self._waiting.popleft())

    def _take(self, frame: Frame) -> None:
        if self._app is None:
            try:
                self._greet(frame)
            except Exception as e:
                self._end(_told(e, "hello"))
            return
        try:
            request_id = msg.request_id(frame)
            if request_id in self._runs:
                raise BadRequest(f"field 'id': request {request_id} is still running")
        except BadRequest as e:  # a reply with this id, or without one, would be taken for another request's
            self._write(encode(replies.failed_frame(None, e)))
            return
        try:
            self._start(request_id, msg.request(frame))
        except Exception as e:
            if run := self._runs.pop(request_id, None):
                run.over = True
            self._write(encode(replies.failed_frame(request_id, _told(e, str(frame.get("op"))))))

    def _greet(self, frame: Frame) -> None:
        hello = msg.hello(frame)
        self._app = msg.app_id(self._uid, hello.app)
        self._timer.cancel()
        log.debug("hello from %s (%r)", self._app, hello.client)
        limits = {"max_frame": self._limits.max_frame, "max_in_flight": self._limits.max_in_flight}
        own = {"type": "hello", "version": msg.VERSION, "server": f"llmaas/{__version__}", "limits": limits}
        self._write(encode({**self._backend.hello(), **own}))

    def _start(self, request_id: int, request: msg.Request) -> None:
        """Answer at once, or begin. Whatever this raises becomes the request's failed reply."""
        assert self._app is not None
        backend, app = self._backend, self._app
        match request:
            case msg.Append() | msg.Generate():
                self._submit(request_id, request)
            case msg.Create(name, system, adapter):
                wish = {"name": name, "system": system}
                self._spawn(request_id, "create", lambda: backend.create(app, **wish, adapter=adapter))
            case msg.Fork(context, name):
                self._spawn(request_id, "fork", lambda: backend.fork(app, context, name=name))
            case msg.Truncate(context, n_tokens, n_messages):
                wanted = {"n_tokens": n_tokens, "n_messages": n_messages}
                self._spawn(request_id, "truncate", lambda: backend.truncate(app, context, **wanted))
            case msg.Hint(context):
                backend.hint(app, context)
                self._done(request_id, None)
            case msg.Delete(context, everyone):
                owner = self._owner(everyone)
                self._spawn(request_id, "delete", lambda: backend.delete(owner, context))
            case msg.ListContexts(everyone):
                self._done(request_id, [to_map(info) for info in backend.contexts(self._owner(everyone))])
            case msg.Show(context, everyone):
                self._done(request_id, to_map(backend.show(self._owner(everyone), context)))
            case msg.Cancel(target):
                backend.cancel(self._target(target, "cancelled"))
                self._done(request_id, None)
            case msg.Prioritize(target, priority):
                backend.prioritize(self._target(target, "given a priority"), priority)
                self._done(request_id, None)
            case msg.Limit(limited, rate):
                self._operators_only("limits are")
                self._done(request_id, backend.limit(AppId(limited) if limited is not None else None, rate))
            case msg.Stats():
                self._done(request_id, backend.stats())
            case msg.Budget(pool_bytes, disk_bytes):
                self._operators_only("the daemon's budgets are")
                self._done(request_id, backend.budget(pool_bytes, disk_bytes))
            case msg.ListAdapters():
                infos = backend.adapters.infos(paths=self._is_operator())
                self._done(request_id, [to_map(info) for info in infos])
            case msg.AdapterAdd(new, path):
                self._operators_only("adapters are")
                self._spawn(request_id, "adapter_add", lambda: backend.adapters.add(new, path))
            case msg.AdapterRemove(old):
                self._operators_only("adapters are")
                self._spawn(request_id, "adapter_remove", lambda: backend.adapters.remove(old))
            case msg.Ping():
                self._done(request_id, None)

    def _owner(self, everyone: bool) -> AppId | None:
        if not everyone:
            return self._app
        self._operators_only("the contexts of every app are")
        return None

    def _is_operator(self) -> bool:
        return self._uid in (0, os.geteuid())

    def _operators_only(self, what: str) -> None:
        if not self._is_operator():
            raise Forbidden(f"{what} for the user who runs the daemon")

    def _admit(self, request_id: int, op: str) -> _RunningRequest:
        if len(self._runs) >= self._limits.max_in_flight:
            raise Busy(f"{len(self._runs)} requests run on this connection already")
        run = self._runs[request_id] = _RunningRequest(op)
        return run

    def _spawn(self, request_id: int, op: str, begin: Callable[[], Coroutine[Any, Any, object]]) -> None:
        run = self._admit(request_id, op)
        task = self._loop.create_task(begin())
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)
        task.add_done_callback(functools.partial(self._ended, request_id, run))

    def _submit(self, request_id: int, request: msg.Append | msg.Generate) -> None:
        assert self._app is not None
        run = self._admit(request_id, msg.op_of(request))
        generation = request.generation if isinstance(request, msg.Generate) else None

        def emit(piece: Piece) -> None:
            if not run.over:
                self._write(encode(replies.piece_frame(request_id, piece)))

        run.call, future = self._backend.submit(
            self._app, request.context, CallSpec(request.turn, generation, request.terms), emit
        )
        future.add_done_callback(functools.partial(self._ended, request_id, run))
        if run.over:  # the first pieces, within submit, found the peer gone
            self._stop(run)

    def _target(self, target: int, what: str) -> RequestId:
        run = self._runs.get(target)
        if run is None:
            raise UnknownRequest(f"no request {target} runs on this connection")
        if run.call is None:
            raise BadRequest(f"field 'request': {target} is a {run.op}; only append and generate can be {what}")
        return run.call

    # -- replies

    def _ended(self, request_id: int, run: _RunningRequest, future: asyncio.Future[Any]) -> None:
        try:
            outcome = future.result()
            if not run.over:
                self._done(request_id, to_map(outcome) if is_dataclass(outcome) else outcome)
        except (Exception, asyncio.CancelledError) as e:
            error = _told(e, run.op)
            if not run.over:
                self._write(encode(replies.failed_frame(request_id, error)))
        run.over = True
        if self._runs.get(request_id) is run:
            del self._runs[request_id]

    def _done(self, request_id: int, result: object) -> None:
        self._write(encode(replies.done_frame(request_id, result), max_frame=self._limits.max_frame))

    def _write(self, data: bytes) -> None:
        if not self._open or self._transport.is_closing():  # the peer may go between two writes
            return
        self._transport.write(data)
        if self._paused and self._transport.get_write_buffer_size() > self._limits.write_buffer:
            log.warning("%s is dropped: it left %d bytes unread", self._app, self._transport.get_write_buffer_size())
            self._abandon()
            self._transport.abort()

    # -- the end

    def _end(self, error: LlmaasError) -> None:
        """Tell why, and close. What the peer still sends is read and thrown away for a moment: a close at once would
        fail its writes before it has read the reply."""
        if not self._open:
            return
        self._write(encode(replies.failed_frame(None, error)))
        self._abandon()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()
        self._closing()

    def _too_late(self) -> None:
        self._end(BadRequest(f"no hello within {self._limits.hello_s:g} s"))

    def shut_down(self) -> None:
        error = ShuttingDown("the daemon is shutting down")
        for request_id in [*self._runs, None]:
            self._write(encode(replies.failed_frame(request_id, error)))
        self._abandon()
        self._transport.close()
        self._closing()

    def _closing(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(_CLOSING_S, self._transport.abort)

    def _abandon(self) -> None:
        """No more replies: cancel what runs."""
        self._open = False
        self._waiting.clear()
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.over = True
            self._stop(run)

    def _stop(self, run: _RunningRequest) -> None:
        if run.call is None:
            return  # create, fork, truncate and delete are short, and end by themselves
        try:
            self._backend.cancel(run.call)
        except UnknownRequest:
            pass  # it ended in this very turn of the loop
        except Exception:
            log.exception("cancelling a request of %s failed", self._app)


def _told(error: BaseException, op: str) -> LlmaasError:
    """The error as callers see it. What no one foresaw is logged with its traceback."""
    if isinstance(error, LlmaasError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Cancelled(f"the {op} was cancelled by the daemon")
    log.error("unexpected fault in %s", op, exc_info=error)
    return Internal(f"unexpected {type(error).__name__} in {op}")
