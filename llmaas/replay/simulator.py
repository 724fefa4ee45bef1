"""The planner's interpreter in virtual time: a trace, a cost model, no model and no I/O.

Law: the very planner that serves decides here; only the prices are invented, and they are all in ``replay/prices``.
Engine, loader, coder and disk each do one job after another, as in the live service.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from llmaas.errors import BadRequest
from llmaas.planner.actions import (
    AbortStep,
    Action,
    Admitted,
    Finish,
    Paused,
    RunStep,
    Switched,
    WakeAt,
)
from llmaas.planner.events import (
    CancelRequested,
    ContextChanged,
    ContextOpened,
    Drawn,
    Event,
    StepDone,
    Submitted,
    Woken,
)
from llmaas.planner.planner import Planner
from llmaas.planner.settings import PlannerSettings
from llmaas.policies.eviction import EvictionPolicy
from llmaas.records import CHUNK_TOKENS, AppId, ContextId, RequestId
from llmaas.replay.chunk_model import ChunkModel
from llmaas.replay.contexts import ReplayContext, context_id
from llmaas.replay.hinting import Hinting
from llmaas.replay.prices import Costs
from llmaas.replay.report import CallReport, ReplayReport
from llmaas.replay.timeline import Resource, Timeline
from llmaas.traces.call import TraceCall

_IDLE_S = 1.0
"""Seconds after a call until it is guessed who comes next."""
_HINT_PRIORITY = 9
"""As the service's: a hint is served when nobody else wants anything."""


class Replay:
    """Runs one trace, once: make it, ``run`` it."""

    def __init__(
        self,
        settings: PlannerSettings,
        costs: Costs | None = None,
        *,
        eviction: EvictionPolicy | None = None,
        hint_s: float = 0.0,
        guess_from: float | None = None,
    ) -> None:
        """``eviction``: a policy in place of the one that the settings name.

        ``hint_s``: each call is hinted at so many seconds before it comes. ``guess_from``: between calls, the context
        that is expected next with at least this confidence is hinted at.
        """
        self._settings, self._costs = settings, costs or Costs()
        self._planner = Planner(settings, eviction=eviction)
        self._time = Timeline()
        self._chunks = ChunkModel(settings.geometry, self._costs, self._time, settings.state)
        self._contexts: dict[ContextId, ReplayContext] = {}
        self._running: dict[RequestId, tuple[ReplayContext, CallReport]] = {}
        self._requests = itertools.count(1)
        self._hint_s, self._hinting = hint_s, Hinting(guess_from)

    def run(self, trace: Iterable[TraceCall]) -> ReplayReport:
        """All calls of the trace, to their ends and the last byte swapped out.

        Raises BadRequest if a context grows beyond the longest that the settings allow.
        """
        reports = [CallReport(call) for call in trace]
        for report in reports:
            self._time.at(report.call.t, lambda r=report: self._arrive(r))  # type: ignore[misc]
            if self._hint_s:
                when = max(0.0, report.call.t - self._hint_s)
                self._time.at(when, lambda r=report: self._hint(context_id(r.call)))  # type: ignore[misc]
        self._time.run()
        problems = tuple(self._planner.check())
        return ReplayReport(tuple(reports), self._planner.tally, self._hinting.counts, problems)

    # -- events and actions

    def _dispatch(self, event: Event) -> None:
        for action in self._planner.handle(event, self._time.now):
            self._perform(action)

    def _answer(self, when: float, event: Event) -> None:
        self._time.at(when, lambda: self._dispatch(event))

    def _perform(self, action: Action) -> None:
        match action:
            case RunStep():
                self._run_step(action)
            case Admitted():
                self._admitted(action)
            case Switched():
                self._switched(action)
            case Paused():
                self._paused(action)
            case Finish():
                self._finish(action)
            case AbortStep():
                pass  # the step ends as if that came too late
            case WakeAt():
                self._answer(action.when, Woken())
            case _:
                if (answer := self._chunks.perform(action)) is not None:
                    self._answer(*answer)

    def _run_step(self, action: RunStep) -> None:
        c = self._costs
        seconds = c.step
        for item in action.items:
            decodes = item.stop - item.start == 1 and item.sample
            seconds += c.decode_token if decodes else c.prefill(item.start, item.stop)
        self._time.at(self._time.work(Resource.ENGINE, seconds), lambda: self._stepped(action))

    def _stepped(self, action: RunStep) -> None:
        for item in action.items:
            if item.sample:
                context, report = self._running[item.request]
                context.n_tokens += 1
                if report.first_token is None:
                    report.first_token = self._time.now
        drawn = tuple(Drawn.TOKEN if item.sample else Drawn.NOTHING for item in action.items)
        self._dispatch(StepDone(action.step, drawn))

    # -- calls come

    def _arrive(self, report: CallReport) -> None:
        call = report.call
        name = context_id(call)
        context = self._contexts.get(name)
        if context is None:
            context = self._contexts[name] = ReplayContext(name, len(self._contexts))
            self._dispatch(ContextOpened(name, AppId(f"0/{call.app}")))
        report.submitted = self._time.now
        self._hinting.called(name)
        if context.hint is not None:
            self._dispatch(CancelRequested(context.hint))  # what it has brought back stays
        context.waiting.append(report)
        self._next_call(context)

    def _next_call(self, context: ReplayContext) -> None:
        if context.running is not None or not context.waiting:
            return
        report = context.running = context.waiting.popleft()
        call, now = report.call, self._time.now
        total = context.n_tokens + call.prompt
        if total + call.generate > self._settings.ctx_limit:
            raise BadRequest(f"trace: context {context.id} grows beyond {self._settings.ctx_limit} tokens")
        request = self._new_request(context, report)
        context.n_tokens = total
        deadline = None if call.deadline_s is None else now + call.deadline_s
        self._dispatch(Submitted(request, context.id, total, call.generate, call.priority, deadline, call.rate))

    def _hint(self, name: ContextId) -> None:
        """Bring the context back if nobody does, as ``Service.hint``."""
        context = self._contexts.get(name)
        if context is None or context.running is not None or context.waiting or not context.n_tokens:
            return
        report = context.running = CallReport(TraceCall(self._time.now, "hint", name, 0, 1))
        request = context.hint = self._new_request(context, report)
        self._dispatch(Submitted(request, name, context.n_tokens, 0, _HINT_PRIORITY))

    def _guess(self) -> None:
        """After a call: bring back the context that comes next, if that is likely enough."""
        if not self._running and (name := self._hinting.guess()) is not None:
            self._hint(name)

    def _new_request(self, context: ReplayContext, report: CallReport) -> RequestId:
        request = RequestId(next(self._requests))
        self._running[request] = context, report
        return request

    # -- calls are served

    def _admitted(self, action: Admitted) -> None:
        report = self._running[action.request][1]
        if report.admitted is None:
            report.admitted = self._time.now

    def _switched(self, action: Switched) -> None:
        report = self._running[action.request][1]
        if report.switched is None:
            report.switched = self._time.now
        a, b, c, d = report.sources
        report.sources = a + action.cells, b + action.pool, c + action.disk, d + action.recomputed

    def _paused(self, action: Paused) -> None:
        context, report = self._running[action.request]
        report.paused += 1
        self._publish_kv(context, action.n_kv)

    def _publish_kv(self, context: ReplayContext, n_kv: int) -> None:
        """What the call has computed becomes chunks."""
        first = min(context.n_kv, n_kv) // CHUNK_TOKENS
        context.n_kv = max(context.n_kv, n_kv)
        changed = ContextChanged(context.id, first, context.keys(context.n_kv, first), context.n_kv)
        self._answer(self._time.now, changed)

    def _finish(self, action: Finish) -> None:
        context, report = self._running.pop(action.request)
        report.done, report.outcome = self._time.now, action.outcome
        context.running = None
        if context.hint is not None:
            context.hint = None
            self._hinting.counts.tokens_moved += sum(report.sources[1:])
        else:
            self._time.at(self._time.now + _IDLE_S, self._guess)
        self._publish_kv(context, action.n_kv)
        self._time.at(self._time.now, lambda: self._next_call(context))
