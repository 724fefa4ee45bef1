"""The planner's actions on calls: admitted, switched, paused, finished.

Law: on the event loop, but for loading and releasing adapters, which is on the engine's thread. Whatever the planner
must be told of it comes later, as an event: it may not get one within an action.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

from llmaas.engine.adapter_cache import AdapterFile
from llmaas.errors import LlmaasError
from llmaas.planner.actions import Admitted, Finish, LoadChunks, Paused, Switched
from llmaas.planner.events import CancelRequested, Event
from llmaas.records import Tier
from llmaas.service.call import Call, LoadSpan
from llmaas.service.live_context import publish_kv
from llmaas.service.parts import ServiceParts

log = logging.getLogger(__name__)

_LOADS = 64
"""Loads of one call that are noted: a call that is paused again and again has many."""


class CallActions:
    """``dispatch`` gives the planner an event."""

    def __init__(self, parts: ServiceParts, dispatch: Callable[[Event], None]) -> None:
        self._thread, self._engine, self._clock = parts.engine_thread, parts.engine, parts.clock
        self._calls, self._directory = parts.calls, parts.directory
        self._adapter_cache, self._queue = parts.adapters.cache, parts.queue
        self._loop = asyncio.get_running_loop()
        self._dispatch = dispatch

    def admitted(self, action: Admitted) -> None:
        """Load the call's adapter and make its sampler, before its steps."""
        call = self._calls[action.request]
        progress, adapter = call.progress, call.control.adapter
        if progress.admitted is None:
            progress.admitted = self._clock.now()
            self._queue.admitted(call)
        if adapter is not None:
            self.in_engine(self._acquire_adapter, call, adapter)
        if call.spec.generation and not progress.has_sampler:  # a call that was paused goes on with the sampler it had
            progress.has_sampler = True
            sampling = call.spec.generation.sampling
            tokens, begins = call.live.tokens, _answer_begins(call)
            past = tokens[max(0, begins - sampling.penalty_last_n) : begins] if sampling.penalises else ()
            self.in_engine(self._engine.set_sampler, call.id, sampling, past, tokens[begins:])

    def switched(self, action: Switched) -> None:
        progress = self._calls[action.request].progress
        if progress.switched is None:
            progress.switched = self._clock.now()
        progress.sources = action if progress.sources is None else _sum(progress.sources, action)

    def loading(self, action: LoadChunks, answer: Callable[[Event], None]) -> Callable[[Event], None]:
        """Note how long the load takes; what its end is to be told to, in place of ``answer``."""
        running = (call for call in self._calls.values() if call.live.id == action.context and call.control.planned)
        call = next(running, None)
        if call is None or len(call.progress.loads) >= _LOADS:
            return answer
        n_tokens = Counter[Tier]()
        for chunk in action.chunks:
            n_tokens[chunk.tier] += chunk.stop - chunk.start
        now = self._clock.now()
        spans = [LoadSpan(tier, n, now) for tier, n in n_tokens.items()]
        call.progress.loads += spans

        def ended(event: Event) -> None:
            for span in spans:
                span.ended = self._clock.now()
            answer(event)

        return ended

    def paused(self, action: Paused) -> None:
        self._leave_cells(self._calls[action.request])
        self._loop.call_soon(self._publish_paused, action)

    def _publish_paused(self, action: Paused) -> None:
        live, call = self._directory.by_id(action.context), self._calls[action.request]
        call.progress.n_paused += 1
        publish_kv(live, max(live.n_kv, action.n_kv), self._dispatch)
        if call.hint:  # others need its room, and waiting would make it more urgent than they are
            self._dispatch(CancelRequested(call.id))

    def finish(self, action: Finish) -> None:
        """Let the call's turn be committed."""
        call = self._calls[action.request]
        assert call.control.finished is not None
        call.control.finished.set_result(action)
        self._leave_cells(call)

    def release(self, call: Call) -> None:
        """The call has ended: the engine need not keep its sampler."""
        if call.progress.has_sampler:
            self.in_engine(self._engine.set_sampler, call.id, None)

    def _leave_cells(self, call: Call) -> None:
        """The call leaves CELLS; the next calls may need the room of its adapter."""
        if call.control.adapter is not None:
            self.in_engine(self._release_adapter, call, call.control.adapter)

    def in_engine(self, do: Callable[..., None], *args: object) -> None:
        """Have the engine's thread call ``do(*args)``; an error is logged."""
        self._thread.submit(do, *args).add_done_callback(_log_failure)

    # -- on the engine's thread

    def _acquire_adapter(self, call: Call, adapter: AdapterFile) -> None:
        """Load the adapter. If that fails, the call ends, and only calls with this adapter do."""
        try:
            self._adapter_cache.acquire(adapter)
            call.hold.held = True
        except LlmaasError as e:
            log.warning("request %d has no adapter: %s", call.id, e.message)
            call.hold.error = e
            self._loop.call_soon_threadsafe(self._dispatch, CancelRequested(call.id))

    def _release_adapter(self, call: Call, adapter: AdapterFile) -> None:
        if call.hold.held:
            call.hold.held = False
            self._adapter_cache.release(adapter.fingerprint)


def _answer_begins(call: Call) -> int:
    """How many of the context's tokens are before the answer, of which some may have been drawn elsewhere or before."""
    return len(call.live.tokens) - len(call.answer.drawn) - call.spec.n_answered


def _sum(a: Switched, b: Switched) -> Switched:
    """A call that was paused switches more than once."""
    return Switched(a.request, a.cells + b.cells, a.pool + b.pool, a.disk + b.disk, a.recomputed + b.recomputed)


def _log_failure(future: Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("engine: %r", error)
