"""The requests of one connection that have no terminal reply yet.

Law: every request gets exactly one terminal reply, after all its pieces; after ``abandon`` there are no replies, and
what can be cancelled soon is.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.adapter_messages import AdapterAdd, AdapterRemove
from llmaas.api.app_messages import AppAdd, AppRemove, AppRotate, SetAppQuota
from llmaas.api.backend import Backend, answer, before, task_of
from llmaas.api.bulk import Bulk
from llmaas.api.caller import Caller
from llmaas.api.embed_message import Embed
from llmaas.api.incoming import Incoming
from llmaas.api.mark_messages import ListMarks, MarksOf
from llmaas.api.pages import Page, page_bytes
from llmaas.api.record_maps import to_map
from llmaas.api.shares import Shares
from llmaas.api.slot_message import OpenSlot
from llmaas.api.transfer_messages import Export, ExportChunks, Import, ImportChunks, MoveToNode
from llmaas.api.transfer_records import ExportedChunks
from llmaas.api.wire import encode, encode_bulk
from llmaas.calls import Piece
from llmaas.errors import BadRequest, Busy, Cancelled, Internal, LlmaasError, NoMemory, UnknownRequest, replaced
from llmaas.records import RequestId

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _RunningRequest:
    """A request without its terminal reply. ``call`` is the backend's id of it, if it is a call that can be cancelled,
    ``task`` what works on it, if that can."""

    op: str
    held: int = 0
    """Bytes of its frame that the buffers hold for it."""
    call: RequestId | None = None
    task: asyncio.Task[Any] | None = None
    future: asyncio.Future[Any] | None = None
    """The call's end."""
    over: bool = False


@dataclass(slots=True, eq=False)
class _Leaving:
    """Calls of a connection that has gone, which are cancelled one at a time."""

    app: str
    calls: list[RequestId]
    cancel: Callable[[RequestId], None]

    def handle_next(self) -> bool:
        self.cancel(self.calls.pop(0))
        return bool(self.calls)


class InFlight:
    """Starts the requests of ``caller`` and writes their replies. ``tasks`` keeps what runs, until it has ended."""

    def __init__(
        self,
        backend: Backend,
        caller: Caller,
        shares: Shares,
        write: Callable[[Bulk], None],
        tasks: set[asyncio.Task[Any]],
        open_slot: Callable[[int, OpenSlot], None],
    ) -> None:
        """``open_slot`` answers a request for one, or raises why not."""
        self._backend = backend
        self._caller = caller
        self._shares, self._limits = shares, shares.limits
        self._write = write
        self._tasks, self._open_slot = tasks, open_slot
        self._running: dict[int, _RunningRequest] = {}
        self._ending: LlmaasError | None = None
        """Why no more requests are taken."""
        self._hints: set[RequestId] = set()
        """Those that have not ended. They end with the connection that sent them."""

    @property
    def running(self) -> bool:
        """Whether any request has no terminal reply yet."""
        return bool(self._running)

    def take(self, incoming: Incoming, held: int = 0) -> None:
        """Answer a request at once, or begin it. Whatever goes wrong is its reply.

        ``held``: bytes of its frame that the buffers hold, until it has ended.
        """
        request_id, request = incoming.request_id, incoming.request
        if request_id in self._running:
            request_id, request = None, BadRequest(f"field 'id': request {request_id} is still running")
        if request_id is None:  # a reply with an id that is in use would be taken for another request's
            assert isinstance(request, BadRequest)
            self._give_back(held)
            self._write(encode(replies.failed_frame(None, request)))
            return
        if refusal := request if isinstance(request, BadRequest | Busy) else self._ending:
            self._give_back(held)
            self._failed(request_id, refusal)
            return
        assert not isinstance(request, BadRequest | Busy)
        try:
            self._start(request_id, request)
        except Exception as e:
            if running := self._running.pop(request_id, None):
                running.over = True
            self._give_back(held)
            self._failed(request_id, as_llmaas_error(e, incoming.op))
            return
        if running := self._running.get(request_id):
            running.held = held
        else:
            self._give_back(held)

    def wind_down(self, error: LlmaasError) -> list[asyncio.Future[Any]]:
        """Take no more requests. Calls are cancelled, and fail with ``error`` when it is known what they have kept: the
        futures that are returned have their ends. All other requests fail with it now."""
        self._ending = error
        for request_id, running in list(self._running.items()):
            if running.call is None:
                running.over = True
                del self._running[request_id]
                self._failed(request_id, error)
                if running.task is not None:
                    running.task.cancel()
            else:
                self._cancel(running.call)
        return [running.future for running in self._running.values() if running.future is not None]

    def fail_all(self, error: LlmaasError) -> None:
        """Reply to every running request that it has failed. To be followed by ``abandon``."""
        for request_id in list(self._running):
            self._failed(request_id, error)

    def abandon(self) -> None:
        """Write no more replies, and cancel what runs, in the app's turn among the frames of others: to cancel a call
        takes the loop longer than most frames do."""
        abandoned, self._running = self._running, {}
        hints, self._hints = self._hints, set()
        for running in abandoned.values():
            running.over = True
            if running.task is not None:
                running.task.cancel()
        # Create, fork, truncate and delete are short, and end by themselves.
        calls = [running.call for running in abandoned.values() if running.call is not None]
        if leaving := [*calls, *hints]:
            self._shares.frames.later(_Leaving(self._caller.app, leaving, self._cancel))

    # -- starting -----------------------------------------------------------------------------

    def _start(self, request_id: int, request: msg.Request) -> None:
        match request:
            case msg.Append() | msg.Generate():
                self._submit(request_id, request)
            case msg.Cancel():
                self._end(request)
                self._done(request_id, None)
            case msg.Prioritize(priority):
                self._backend.prioritize(self._target(request, "given a priority"), self._allowed(priority))
                self._done(request_id, None)
            case msg.Hint(context):
                self._hint(context)
                self._done(request_id, None)
            case (
                msg.Create()
                | msg.Fork()
                | msg.Resolve()
                | msg.Truncate()
                | msg.Migrate()
                | msg.Delete()
                | Export()
                | Import()
                | ExportChunks()
                | ImportChunks()
                | MoveToNode()
                | ListMarks()
                | MarksOf()
                | AdapterAdd()
                | AdapterRemove()
                | AppAdd()
                | AppRemove()
                | AppRotate()
                | SetAppQuota()
            ):
                self._spawn(request_id, msg.op_of(request), task_of(self._backend, self._caller, request))
            case OpenSlot():
                self._open_slot(request_id, request)
            case Embed():
                task = self._spawn(request_id, "embed", task_of(self._backend, self._caller, request))
                self._running[request_id].task = task
            case _:
                self._answer(request_id, request)

    def _answer(self, request_id: int, request: msg.QuickRequest) -> None:
        """At once, or when what is missing has been read."""
        quick = functools.partial(answer, self._backend, self._caller, request, page_bytes(self._limits.max_frame))
        if (reading := before(self._backend, self._caller, request)) is None:
            self._done(request_id, quick())
            return

        async def read_and_answer() -> object:
            await reading()
            return quick()

        self._spawn(request_id, msg.op_of(request), read_and_answer)

    def _admit(self, request_id: int, op: str) -> _RunningRequest:
        if len(self._running) >= self._limits.max_in_flight:
            raise Busy(f"{len(self._running)} requests run on this connection already")
        running = self._running[request_id] = _RunningRequest(op)
        return running

    def _spawn(self, request_id: int, op: str, begin: Callable[[], Coroutine[Any, Any, object]]) -> asyncio.Task[Any]:
        app, tasks = self._caller.app, self._shares.tasks
        if tasks[app] >= self._limits.app_tasks:
            raise Busy(f"{tasks[app]} requests of the app {app} run already")
        if tasks.total() >= self._limits.tasks:
            raise Busy(f"{tasks.total()} requests run already")
        running = self._admit(request_id, op)
        # The server looks for what an app has under way by this name; what the operator has begun is left alone.
        task = asyncio.get_running_loop().create_task(begin(), name="" if self._caller.is_operator else app)
        tasks[app] += 1
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        task.add_done_callback(functools.partial(self._ended, request_id, running))
        return task

    def _submit(self, request_id: int, request: msg.Append | msg.Generate) -> None:
        running = self._admit(request_id, msg.op_of(request))
        terms = replace(request.terms, priority=self._allowed(request.priority))
        spec = replace(request.spec, terms=terms)

        def emit(piece: Piece) -> None:
            if not running.over:
                self._write(encode(replies.piece_frame(request_id, piece)))

        caller = self._caller
        running.call, future = self._backend.submit(
            caller.app, request.context, spec, emit, operator=caller.is_operator
        )
        running.future = future
        future.add_done_callback(functools.partial(self._ended, request_id, running))
        if running.over:  # the first pieces, within submit, found the peer gone
            self._cancel(running.call)

    def _hint(self, context: str) -> None:
        if (begun := self._backend.hint(self._caller.app, context)) is not None:
            hint, future = begun
            self._hints.add(hint)
            future.add_done_callback(lambda _: self._hints.discard(hint))

    def _allowed(self, priority: int) -> int:
        """The priority that a call gets which asks for this one. The app's own quota goes before the settings."""
        if self._caller.is_operator:
            return self._caller.allowed(priority)
        return self._caller.allowed(priority, self._backend.apps.most_urgent(self._caller.app))

    def _end(self, request: msg.Cancel) -> None:
        running = None if request.request is None else self._running.get(request.request)
        if running is not None and running.task is not None:
            running.task.cancel()
        else:
            self._backend.cancel(self._target(request, "cancelled"))

    def _target(self, request: msg.ControlRequest, what: str) -> RequestId:
        """The backend's id of the call that ``request`` is about. Raises UnknownRequest, BadRequest, Forbidden."""
        if request.request is not None:
            return self._call(request.request, what)
        assert request.call is not None
        return self._backend.find_call(self._caller.owner(request.everyone), request.call)

    def _call(self, target: int, what: str) -> RequestId:
        """The backend's id of a running call. Raises UnknownRequest, BadRequest."""
        running = self._running.get(target)
        if running is None:
            raise UnknownRequest(f"no request {target} runs on this connection")
        if running.call is None:
            raise BadRequest(f"field 'request': {target} is a {running.op}; only append and generate can be {what}")
        return running.call

    # -- ending -------------------------------------------------------------------------------

    def _ended(self, request_id: int, running: _RunningRequest, future: asyncio.Future[Any]) -> None:
        try:
            error = _error_of(future, running.op)
            if running.over:
                return
            if error is None:
                result = future.result()
                if isinstance(result, ExportedChunks):
                    self._done_in_parts(request_id, result)
                    return
                plain = isinstance(result, Page) or not is_dataclass(result)
                self._done(request_id, result if plain else to_map(result))
                return
            if self._ending is not None and isinstance(error, Cancelled):
                error = replaced(self._ending, error)
            self._failed(request_id, error)
        except Exception as e:
            self._failed(request_id, as_llmaas_error(e, running.op))
        finally:
            running.over = True
            self._give_back(running.held)
            if self._running.get(request_id) is running:
                del self._running[request_id]

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._shares.tasks[self._caller.app] -= 1
        if not self._shares.tasks[self._caller.app]:
            del self._shares.tasks[self._caller.app]

    def _give_back(self, held: int) -> None:
        if held:
            self._shares.buffers.give_back(self._caller.app, held)

    def _done(self, request_id: int, result: object) -> None:
        page = result if isinstance(result, Page) else Page(result, None)
        self._write(encode(replies.page_frame(request_id, page), max_frame=self._limits.max_frame))

    def _done_in_parts(self, request_id: int, chunks: ExportedChunks) -> None:
        frame = replies.done_frame(request_id, to_map(chunks))
        for part in encode_bulk(frame, max_frame=self._limits.max_frame):
            self._write(part)

    def _failed(self, request_id: int, error: LlmaasError) -> None:
        self._write(encode(replies.failed_frame(request_id, error)))

    def _cancel(self, call: RequestId) -> None:
        try:
            self._backend.cancel(call)
        except UnknownRequest:
            pass  # it has ended; its done callback comes later in this iteration of the event loop
        except Exception:
            log.exception("cancelling a request of %s failed", self._caller.app)


def _error_of(future: asyncio.Future[Any], op: str) -> LlmaasError | None:
    """What a future ended with. It is not raised: its traceback would refer to the future, and the garbage collector
    would have to find the two."""
    if future.cancelled():
        return as_llmaas_error(asyncio.CancelledError(), op)
    error = future.exception()
    return None if error is None else as_llmaas_error(error, op)


def as_llmaas_error(error: BaseException, op: str) -> LlmaasError:
    """The error as callers see it. An unexpected one is logged with its traceback."""
    if isinstance(error, LlmaasError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Cancelled(f"the {op} was cancelled by the daemon")
    if isinstance(error, MemoryError):
        log.warning("no memory for a %s: %s", op, error)
        return NoMemory(f"the daemon has no memory for this {op}")
    log.error("unexpected fault in %s", op, exc_info=error)
    return Internal(f"unexpected {type(error).__name__} in {op}")
