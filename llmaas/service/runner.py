"""All calls that wait or run: from submission to the one terminal reply.

Law: every call gets exactly one reply, whatever happens to it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from functools import partial

from llmaas.calls import CallSpec, Done, Piece, Terms, Turn
from llmaas.errors import Busy, Cancelled, Internal, LlmaasError, NoMemory, ShuttingDown, replaced
from llmaas.log_context import current_call
from llmaas.metrics import Registry
from llmaas.planner.actions import Outcome
from llmaas.planner.events import CancelRequested, PriorityChanged
from llmaas.records import AppId, RequestId
from llmaas.service.anonymous import AnonymousContexts
from llmaas.service.answer import Answer
from llmaas.service.call import Call, CallControl
from llmaas.service.constraints import ConstraintHolder
from llmaas.service.interpreter import Interpreter
from llmaas.service.keyed_turns import seeded
from llmaas.service.live_context import LiveContext
from llmaas.service.parts import ServiceParts
from llmaas.service.pending_turn import PendingTurn
from llmaas.service.places import HINT_AGAIN_S, HINT_WAIT_S, OPERATOR_CALLS, CallPlaces, hints_to_push_out
from llmaas.service.refusals import failure
from llmaas.service.request_log import RequestLog
from llmaas.service.stored_contexts import StoredContexts
from llmaas.service.turn_runner import TurnRunner

log = logging.getLogger(__name__)


_HINT = CallSpec(Turn(), terms=Terms(priority=9))
"""A hint is served when nobody else wants anything."""


class CallRunner:
    """All calls that wait or run. ``queue_limit``: how many one app may have. For one event loop."""

    def __init__(
        self,
        parts: ServiceParts,
        interpreter: Interpreter,
        anonymous: AnonymousContexts,
        stored: StoredContexts,
        *,
        ctx_limit: int,
        queue_limit: int,
        keep_thoughts: bool = False,
    ) -> None:
        self._constraints = ConstraintHolder(parts)
        self._weights, self._queue = parts.weights, parts.queue
        self._turns = TurnRunner(
            parts, interpreter, self._constraints, anonymous, stored, ctx_limit=ctx_limit, keep_thoughts=keep_thoughts
        )
        self._dispatch, self._release = interpreter.dispatch, interpreter.release
        self._tiers = interpreter.planner.tiers
        self._calls, self._clock, self._metrics = parts.calls, parts.clock, parts.metrics
        self.log, self._app_tallies = RequestLog(parts.calls, parts.clock), parts.app_tallies
        self._places, self._operator_places = (
            CallPlaces(queue_limit, parts.app_places, others=parts.embedding),
            CallPlaces(queue_limit, parts.app_places, OPERATOR_CALLS, others=parts.embedding),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self.total = 0
        """Calls submitted since start; also the last request's id."""
        self._closing = False

    def close(self) -> None:
        """End every call; their replies are ShuttingDown."""
        self._closing = True
        for call in list(self._calls.values()):
            self.cancel(call.id)

    def end_threads(self) -> None:
        """After ``close``: return when the runner's thread has ended."""
        self._constraints.close()

    async def wait_idle(self) -> None:
        """Return when no call waits or runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def waiting_by_priority(self) -> dict[str, int]:
        """How many calls wait to be admitted, by their priority."""
        waiting = [call for call in self._calls.values() if call.progress.admitted is None and not call.hint]
        return dict(sorted(Counter(str(call.control.priority) for call in waiting).items()))

    def cancel_calls_of(self, live: LiveContext) -> None:
        for call in list(self._calls.values()):
            if call.live is live:
                self.cancel(call.id)

    def submit(
        self, live: LiveContext, spec: CallSpec, emit: Callable[[Piece], None], *, operator: bool
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        """Begin a call; see ``Service.submit``. Raises Busy."""
        places = self._operator_places if operator else self._places
        if (pushed_out := places.to_push_out(live.row.app, self._calls.values())) is not None:
            pushed_out.control.pushed_out = True
            self.cancel(pushed_out.id)
        for other in list(self._calls.values()):
            if other.live is live and other.hint:  # what it has brought back stays; this call sees to the rest
                self.cancel(other.id)
        call = self._begin(live, spec, emit)
        live.claimed_until = -math.inf  # the call keeps it from now on
        return call.id, call.control.reply

    def hint(self, live: LiveContext) -> tuple[RequestId, asyncio.Future[Done]] | None:
        """Bring the context back when there is nothing better to do, unless a call does so already; see
        ``Service.hint``."""
        self._weights.used()
        if live.lock.locked() or not live.n_tokens or self._is_hinted(live):
            return None
        pushed_out = hints_to_push_out(live.row.app, self._calls.values())
        if pushed_out is None:
            return None
        for other in pushed_out:
            self.cancel(other.id)
        live.hinted = self._clock.now()
        call = self._begin(live, _HINT, lambda piece: None, hint=True)
        call.control.reply.add_done_callback(_retrieve_error)
        call.control.deadline_timer = asyncio.get_running_loop().call_later(HINT_WAIT_S, self._waited_enough, call)
        return call.id, call.control.reply

    def _is_hinted(self, live: LiveContext) -> bool:
        """Whether a hint has just done all that another one could do: each takes the loop as long as a short call."""
        lately = live.opened and self._clock.now() - live.hinted < HINT_AGAIN_S
        return lately and self._tiers(live.id)[0] >= live.n_tokens

    async def end_hints(self, app: AppId) -> None:
        """Return when no hint works on an anonymous context of the app: ``resolve`` copies those that are in use. What
        a hint has brought back stays."""
        hints = [call for call in self._calls.values() if call.hint and call.live.anonymous]
        mine = [call for call in hints if call.live.row.app == app]
        tasks = [call.control.task for call in mine if call.control.task is not None]
        for call in mine:
            self.cancel(call.id)
        if tasks:
            await asyncio.wait(tasks)

    def _waited_enough(self, hint: Call) -> None:
        if hint.progress.admitted is None:
            self.cancel(hint.id)

    def _begin(self, live: LiveContext, spec: CallSpec, emit: Callable[[Piece], None], *, hint: bool = False) -> Call:
        loop = asyncio.get_running_loop()
        self.total += 1
        spec = seeded(spec)
        call = Call(
            id=RequestId(self.total),
            live=live,
            spec=spec,
            emit=emit,
            submitted=self._clock.now(),
            hint=hint,
            control=CallControl(loop.create_future(), spec.terms.priority),
            pending=PendingTurn(live, spec.turn),
            answer=Answer(live, spec.generation),
        )
        self._calls[call.id] = call
        self._weights.used()
        self._queue.begun(call)
        task = call.control.task = loop.create_task(self._serve(call))
        self._tasks.add(task)
        task.add_done_callback(partial(self._forget, call))
        if spec.terms.deadline_s is not None:
            call.control.deadline_timer = loop.call_later(spec.terms.deadline_s, self._expire, call)
        return call

    def _forget(self, call: Call, task: asyncio.Task[None]) -> None:
        """The task is over. A cancelled one refers to its call by the traceback: the garbage collector would have to
        find them, and stops everything for that."""
        self._tasks.discard(task)
        call.control.task = None

    def cancel(self, request: RequestId) -> None:
        """The call's reply will be Cancelled, soon. One that has ended already is left alone."""
        call = self._calls.get(request)
        if call is None:
            return
        if call.control.cancelled:
            if call.control.successor is not None:
                call.control.successor.cancel()
            return
        call.control.cancelled = True
        if call.control.planned:
            self._dispatch(CancelRequested(request))
        else:
            self._abandon(call, Cancelled("cancelled before it began"))

    def _expire(self, call: Call) -> None:
        """The deadline has passed. Once the planner knows the call, the planner sees to that."""
        if not call.control.planned and call.id in self._calls:
            self._abandon(call, failure(Outcome.EXPIRED))

    def _abandon(self, call: Call, error: LlmaasError) -> None:
        """Reply at once to a call that the planner does not know: it may be waiting behind another of its context."""
        del self._calls[call.id]
        if call.control.task is not None:
            call.control.task.cancel()
        self._reply(call, error)

    def prioritize(self, request: RequestId, priority: int) -> None:
        """The call is served with another priority from now on; one that has ended already is left alone."""
        call = self._calls.get(request)
        if call is None:
            return
        call.control.priority = priority
        if call.control.planned:
            self._dispatch(PriorityChanged(request, priority))

    async def _serve(self, call: Call) -> None:
        current_call.set(call.id)  # of this task
        outcome: Done | LlmaasError = Internal("the request was given up")
        try:
            async with call.live.lock:
                outcome = await self._turns.run(call)
        except LlmaasError as e:
            outcome = await self._succeeded(call, e)
        except MemoryError as e:
            log.warning("request %d: no memory: %s", call.id, e)
            outcome = NoMemory("the daemon has no memory for this request")
        except Exception as e:
            log.exception("request %d failed", call.id)
            outcome = Internal(f"request failed: {e}")
        finally:
            if self._calls.pop(call.id, None) is not None:
                self._reply(call, outcome)
            self._release(call)

    async def _succeeded(self, call: Call, error: LlmaasError) -> Done | LlmaasError:
        """How the call ends; it may have been interrupted so that its answer goes on elsewhere."""
        successor = call.control.successor
        if successor is None or not isinstance(error, Cancelled) or not error.n_generated:
            return error
        try:
            return await successor.run(call)
        except LlmaasError as e:
            return e
        except Exception as e:
            log.exception("request %d failed when it was to go on elsewhere", call.id)
            return Internal(f"request failed: {e}")

    def _reply(self, call: Call, outcome: Done | LlmaasError) -> None:
        if call.control.deadline_timer is not None:
            call.control.deadline_timer.cancel()
        self._weights.used()
        self._queue.ended(call)
        self._answer(call, outcome)
        self.log.ended(call, outcome)
        if call.control.told_again:
            self._metrics.counter("told_again").add()
        elif not call.hint:
            self._app_tallies.count(call, outcome)
            count(outcome, self._metrics)

    def _answer(self, call: Call, outcome: Done | LlmaasError) -> None:
        reply = call.control.reply
        if reply.done():  # the caller dropped it
            return
        if isinstance(outcome, Done):
            reply.set_result(outcome)
        elif self._closing and isinstance(outcome, Cancelled):
            reply.set_exception(replaced(ShuttingDown("the service is stopping"), outcome))
        elif call.control.pushed_out and isinstance(outcome, Cancelled):
            reply.set_exception(replaced(Busy("too many requests wait, and another app has fewer of them"), outcome))
        else:
            # Its traceback refers to the call, with all the text of its turn, and the call to this reply.
            reply.set_exception(outcome.with_traceback(None))


def count(outcome: Done | LlmaasError, metrics: Registry) -> None:
    """What a call's end adds to the metrics."""
    if isinstance(outcome, LlmaasError):
        metrics.counter(f"failed.{outcome.code}").add()
        return
    switch = outcome.switch
    tiers = {"recomputed": switch.recomputed, "disk": switch.disk, "pool": switch.pool, "cells": switch.cells}
    slowest = next((name for name, tokens in tiers.items() if tokens), "new")
    metrics.histogram(f"switch_ms.{slowest}").observe(switch.switch_ms)
    metrics.histogram("queue_ms").observe(outcome.queue_ms)
    if outcome.n_generated:
        metrics.histogram("ttft_ms").observe(outcome.ttft_ms)
    if outcome.decode_tps:
        metrics.histogram("decode_tokens_per_s").observe(outcome.decode_tps)


def _retrieve_error(reply: asyncio.Future[Done]) -> None:
    """Nobody waits for a hint's reply: asyncio would log an error of it as never retrieved."""
    if not reply.cancelled():
        reply.exception()
