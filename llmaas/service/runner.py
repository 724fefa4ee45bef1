"""Running calls: from submission, through the planner, to a durable turn and its one reply.

Law: a call holds its context's lock from its first look at the tokens until its turn is committed or taken back. What
a reply acknowledges is durable before the reply leaves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from llmaas.calls import CallSpec, Done, Piece, Terms, Turn
from llmaas.clock import Clock
from llmaas.engine.base import Engine
from llmaas.errors import (
    BadRequest,
    Busy,
    Cancelled,
    ContextTooLong,
    EngineFailed,
    Expired,
    Internal,
    LlmaasError,
    ShuttingDown,
    UnknownContext,
)
from llmaas.kvchunks.store.store import Span, Store
from llmaas.metrics import Registry
from llmaas.planner.actions import Finish, Outcome
from llmaas.planner.events import CancelRequested, Event, PriorityChanged, Submitted
from llmaas.records import ChunkKey, RequestId
from llmaas.service.adapters import AdapterRegistry
from llmaas.service.call import Call, turn_spans
from llmaas.service.contexts import LiveContext, tell_changed
from llmaas.service.shift import is_tight, shift, take_back

log = logging.getLogger(__name__)
T = TypeVar("T")


_HINT = CallSpec(Turn(), terms=Terms(priority=9))
"""A hint is served when nobody wants anything."""


class StoreThread:
    """The thread that reads and writes the store's rows, one job after another, off the event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "rows")

    async def run(self, do: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *args)

    def close(self) -> None:
        self._thread.shutdown()


class CallRunner:
    """All calls that wait or run. ``dispatch`` tells the planner, ``stored`` asks it whether a chunk has a copy;

    ``release`` hears of each call that has ended. ``calls`` is shared with the interpreter.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        rows: StoreThread,
        clock: Clock,
        calls: dict[RequestId, Call],
        dispatch: Callable[[Event], None],
        stored: Callable[[ChunkKey], bool],
        release: Callable[[Call], None],
        metrics: Registry,
        adapters: AdapterRegistry,
        *,
        ctx_limit: int,
        queue_limit: int,
    ) -> None:
        self._engine, self._store, self._rows, self._clock = engine, store, rows, clock
        self._calls, self._dispatch, self._stored, self._release = calls, dispatch, stored, release
        self._metrics, self._adapters = metrics, adapters
        self._ctx_limit, self._queue_limit = ctx_limit, queue_limit
        self._tasks: set[asyncio.Task[None]] = set()
        self.total = 0
        """Calls submitted since start; also the last request's id."""
        self.closing = False

    def close(self) -> None:
        """End every call; their replies are ShuttingDown."""
        self.closing = True
        for call in list(self._calls.values()):
            self.cancel(call.id)

    async def wait_idle(self) -> None:
        """Return when no call waits or runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def end_calls_of(self, live: LiveContext) -> None:
        for call in list(self._calls.values()):
            if call.live is live:
                self.cancel(call.id)

    def submit(
        self,
        live: LiveContext,
        spec: CallSpec,
        emit: Callable[[Piece], None],
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        """Begin a call; see ``Service.submit``. Raises Busy."""
        if len(self._calls) >= self._queue_limit:
            raise Busy(f"{len(self._calls)} requests are waiting or running")
        for other in list(self._calls.values()):
            if other.live is live and other.hint:  # what it has brought back stays; the rest is this call's business
                self.cancel(other.id)
        call = self._begin(live, spec, emit)
        return call.id, call.reply

    def hint(self, live: LiveContext) -> None:
        """Bring the context back when there is nothing better to do, unless a call does so already."""
        if live.lock.locked() or not live.tokens or len(self._calls) >= self._queue_limit:
            return
        call = self._begin(live, _HINT, lambda piece: None, hint=True)
        call.reply.add_done_callback(_heed)

    def _begin(
        self,
        live: LiveContext,
        spec: CallSpec,
        emit: Callable[[Piece], None],
        *,
        hint: bool = False,
    ) -> Call:
        loop = asyncio.get_running_loop()
        self.total += 1
        call = Call(
            RequestId(self.total),
            live,
            spec.turn,
            spec.generation,
            emit,
            spec.terms,
            self._clock.now(),
            loop.create_future(),
            loop.create_future(),
            hint=hint,
        )
        if spec.generation:
            call.stream = type(call.stream)(spec.generation.stop)
        self._calls[call.id] = call
        call.task = loop.create_task(self._serve(call))
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)
        if spec.terms.deadline_s is not None:
            call.timer = loop.call_later(spec.terms.deadline_s, self._too_late, call)
        return call

    def cancel(self, request: RequestId) -> None:
        """The call's reply will be Cancelled, soon. One that has ended already is left alone."""
        call = self._calls.get(request)
        if call is None or call.cancelled:
            return
        call.cancelled = True
        if call.planned:
            self._dispatch(CancelRequested(request))
        else:
            self._give_up(call, Cancelled("cancelled before it began"))

    def _too_late(self, call: Call) -> None:
        """The deadline has passed. Once the planner knows of the call, it sees to that."""
        if not call.planned and call.id in self._calls:
            self._give_up(call, self._failure(Outcome.EXPIRED, 0))

    def _give_up(self, call: Call, error: LlmaasError) -> None:
        """The call waits behind another of its context: its reply need not."""
        del self._calls[call.id]
        if call.task is not None:
            call.task.cancel()
        self._reply(call, None, error)

    def prioritize(self, request: RequestId, priority: int) -> None:
        """The call is served with another priority from now on; one that has ended already is left alone."""
        call = self._calls.get(request)
        if call is None:
            return
        call.terms = dataclasses.replace(call.terms, priority=priority)
        if call.planned:
            self._dispatch(PriorityChanged(request, priority))

    async def _serve(self, call: Call) -> None:
        done: Done | None = None
        error: LlmaasError | None = None
        try:
            async with call.live.lock:
                done = await self._run(call)
        except LlmaasError as e:
            error = e
        except Exception as e:
            log.exception("request %d failed", call.id)
            error = Internal(f"request failed: {e}")
        self._release(call)
        if self._calls.pop(call.id, None) is not None:
            self._reply(call, done, error)

    def _reply(self, call: Call, done: Done | None, error: LlmaasError | None) -> None:
        if call.timer is not None:
            call.timer.cancel()
        if not call.hint:
            self._measure(done, error)
        if call.reply.done():  # the caller dropped it
            return
        if done is not None:
            call.reply.set_result(done)
        elif self.closing and isinstance(error, Cancelled):
            call.reply.set_exception(ShuttingDown("the service is stopping"))
        elif error is not None:
            call.reply.set_exception(error)

    def _measure(self, done: Done | None, error: LlmaasError | None) -> None:
        if error is not None:
            self._metrics.counter(f"failed.{error.code}").add()
        if done is None:
            return
        switch = done.switch
        tiers = {"recomputed": switch.recomputed, "disk": switch.disk, "pool": switch.pool, "cells": switch.cells}
        worst = next((name for name, tokens in tiers.items() if tokens), "new")
        self._metrics.histogram(f"switch_ms.{worst}").observe(switch.switch_ms)
        self._metrics.histogram("queue_ms").observe(done.queue_ms)
        if done.n_generated:
            self._metrics.histogram("ttft_ms").observe(done.ttft_ms)
        if done.decode_tps:
            self._metrics.histogram("decode_tokens_per_s").observe(done.decode_tps)

    async def _run(self, call: Call) -> Done:
        live = call.live
        if call.generation and call.generation.sampling.constrained:
            await asyncio.to_thread(self._engine.check_sampling, call.generation.sampling)
        refuse_if_deleted(live)
        if call.cancelled:
            raise Cancelled("cancelled before it began")
        if not call.hint:
            call.spans = turn_spans(self._engine, live, call.turn, answer=call.generation is not None)
        call.base = len(live.tokens)
        if call.generation and not call.base + call.n_prompt:
            raise BadRequest("there is nothing to answer: the context is empty", hint="Send messages or a prompt.")
        wanted = live.adapter if call.terms.adapter is None else call.terms.adapter
        call.adapter = self._adapters.file(wanted, live.row.name if wanted == live.adapter else None)
        for span in call.spans:
            live.tokens.extend(span.tokens)
        try:
            if is_tight(call, self._ctx_limit):
                await self._shift(call, live.n_kv)
            if call.cancelled:
                raise Cancelled("cancelled before it began")
            refuse_if_too_long(len(live.tokens), self._ctx_limit)
        except BaseException:
            self._take_back(call, live.n_kv)
            raise
        if wanted != live.adapter:
            call.before = live.adapter, live.root
        self._put_on(live, wanted, self._adapters.root(live.row.app, wanted))
        call.planned = True
        finish = await self._planned(call)
        while finish.outcome is Outcome.CONTEXT_FULL and call.shifts:
            if not await self._shift(call, max(live.n_kv, finish.n_kv)):
                break
            finish = replace(finish, n_kv=0)  # what the shift has said of the KV holds
            if call.cancelled:
                finish = replace(finish, outcome=Outcome.CANCELLED)
            elif len(live.tokens) >= self._ctx_limit:
                break
            else:
                finish = await self._planned(call)
        return await self._commit(call, finish)

    async def _shift(self, call: Call, n_kv: int) -> bool:
        """Drop old messages of a context whose first ``n_kv`` tokens are in CELLS or have keys; False if there are none
        to drop, or this failed: the answer then ends as it would without."""
        live = call.live
        try:
            stored = await self._rows.run(self._store.spans, live.id)
            same = shift(call, stored, self._engine, self._ctx_limit)
        except LlmaasError as e:
            if not call.planned:
                raise
            log.warning("request %d cannot drop old messages: %s", call.id, e)
            return False
        if same is not None:
            self._changed(live, min(n_kv, same))
        return same is not None

    async def _planned(self, call: Call) -> Finish:
        """Have the planner compute all tokens of the context, and what is left of the answer."""
        live = call.live
        if (n := live.shared(self._stored)) > live.n_kv:
            self._changed(live, n)
        n_total, left, terms = len(live.tokens), call.max_new - len(call.drawn), call.terms
        adapter = (call.adapter.fingerprint, call.adapter.size_bytes) if call.adapter else ()
        deadline = None if terms.deadline_s is None else call.submitted + terms.deadline_s
        call.finished = asyncio.get_running_loop().create_future()
        self._dispatch(Submitted(call.id, live.id, n_total, left, terms.priority, deadline, terms.rate, *adapter))
        return await call.finished

    def _take_back(self, call: Call, n_kv: int) -> None:
        """Leave the context as it was before the call; ``n_kv`` leading tokens are in CELLS or have keys."""
        self._changed(call.live, min(take_back(call), n_kv))
        if call.before:
            self._put_on(call.live, *call.before)

    async def _commit(self, call: Call, finish: Finish) -> Done:
        """Make the turn durable, then reply, then swap out; or take it back."""
        live = call.live
        failed = finish.outcome in (Outcome.CANCELLED, Outcome.EXPIRED, Outcome.ENGINE_FAILED)
        if rest := call.rest():
            call.emit(rest)
        spans = [*call.spans, *call.answer_span()]
        try:
            if finish.outcome is Outcome.ENGINE_FAILED or (failed and (call.fault or not call.drawn)):
                raise call.fault or self._failure(finish.outcome, 0)
            now = self._clock.wall()
            if spans or call.before:
                await self._rows.run(self._keep, call, spans, now)
        except BaseException:
            self._take_back(call, max(live.n_kv, finish.n_kv))
            raise
        live.note(spans, add_tokens=False)
        if not call.hint:
            live.last_used, live.used = now, self._clock.now()
        self._changed(live, max(live.n_kv, finish.n_kv))
        if failed:
            raise self._failure(finish.outcome, len(call.drawn))
        return call.done(finish.outcome, self._clock.now())

    def _keep(self, call: Call, spans: list[Span], now: float) -> None:
        """Make the turn durable, and what was dropped for it, in one transaction."""
        live = call.live
        if call.shift is None:
            self._store.append(live.id, spans, expect=call.base, now=now, adapter=live.adapter)
        else:
            spans = [*call.shift.kept, *spans]
            self._store.rewrite(live.id, spans, expect=len(call.shift.tokens), now=now, adapter=live.adapter)

    def _put_on(self, live: LiveContext, adapter: str, root: bytes) -> None:
        """The context uses this adapter from now on; KV of another one (or of another file of that name) is void."""
        live.adapter = adapter
        if live.root == root:
            return
        tell_changed(live, 0, self._dispatch)
        live.root = root
        self._changed(live, live.shared(self._stored))

    @staticmethod
    def _failure(outcome: Outcome, n_generated: int) -> LlmaasError:
        if outcome is Outcome.CANCELLED:
            return Cancelled("the request was cancelled", n_generated=n_generated)
        if outcome is Outcome.EXPIRED:
            return Expired("the request's deadline passed before it was done", n_generated=n_generated)
        return EngineFailed("the engine failed on this request")

    def _changed(self, live: LiveContext, n_kv: int) -> None:
        tell_changed(live, n_kv, self._dispatch)


def _heed(reply: asyncio.Future[Done]) -> None:
    """Nobody waits for a hint's reply: an error of it would otherwise be told as never retrieved."""
    if not reply.cancelled():
        reply.exception()


def refuse_if_deleted(live: LiveContext) -> None:
    if live.deleted:
        raise UnknownContext(f"context {live.row.name!r} was deleted")


def refuse_if_too_long(n_tokens: int, limit: int) -> None:
    if n_tokens > limit:
        raise ContextTooLong(f"the context would have {n_tokens} tokens; at most {limit} fit")
