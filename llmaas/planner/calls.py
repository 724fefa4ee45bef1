"""Calls: from their submission to their one outcome, and what runs in between.

Law: every call that was submitted finishes exactly once. A call ends early as soon as the step or the load that runs
for it is over; nothing of other calls is disturbed by that.
"""

from __future__ import annotations

from llmaas.errors import assert_never
from llmaas.planner.actions import Action, Finish, Outcome
from llmaas.planner.admission import Admission
from llmaas.planner.batching import Batching
from llmaas.planner.context_table import ContextTable
from llmaas.planner.deadlines import Deadlines
from llmaas.planner.events import (
    CallEvent,
    CancelRequested,
    Fetched,
    Loaded,
    PriorityChanged,
    StepDone,
    StepEvent,
    StepFailed,
    Submitted,
    SwitchEvent,
)
from llmaas.planner.jobs import Job, Stage
from llmaas.planner.pacing import Pacing
from llmaas.planner.switching import Switching
from llmaas.planner.tally import Tally
from llmaas.records import ContextId


class Calls:
    """Ends calls, and takes all of them one phase further: admitted, brought back, computed."""

    def __init__(
        self,
        contexts: ContextTable,
        admission: Admission,
        switching: Switching,
        batching: Batching,
        pacing: Pacing,
        tally: Tally,
    ) -> None:
        self._contexts, self._admission, self._switching = contexts, admission, switching
        self._batching, self._pacing, self._tally = batching, pacing, tally
        self._deadlines = Deadlines(admission.jobs)

    # -- phases, in the order in which they follow each other

    def expire(self, now: float, out: list[Action]) -> None:
        """End the calls whose deadline has passed."""
        if self._deadlines:
            for late in self._deadlines.expired(now):
                self._end_early(late, Outcome.EXPIRED, out)

    def admit(self, now: float, out: list[Action]) -> None:
        """Give cells to the calls that are due."""
        if self._admission.waiting:
            self._admission.admit(now, out)

    def bring_back(self, now: float, out: list[Action]) -> None:
        """Begin the next piece of the way back of every context that is not all in CELLS."""
        for job in [job for job in self._admission.running.values() if job.stage is Stage.SWITCHING]:
            if self._switching.advance(job, now, out):
                self._admission.switched_in(job, now)
                if job.context.cells >= job.prefill_end:
                    self._finish(job, Outcome.APPENDED, out)  # there was nothing to compute

    def compute(self, now: float, out: list[Action]) -> float | None:
        """Begin an engine step if none runs; if only a limit forbids it, the moment to ask again."""
        if self._batching.running is not None:
            return None
        if self._batching.full:
            self._batching.full = self._admission.grow(now, out)
        return self._batching.begin(self._admission.running.values(), now, out)

    @property
    def next_deadline(self) -> float | None:
        return self._deadlines.next() if self._deadlines else None

    # -- events

    def handle(self, event: CallEvent, now: float, out: list[Action]) -> None:
        match event:
            case Submitted():
                self._submitted(event, now, out)
            case CancelRequested(request=request):
                if (job := self._admission.jobs.get(request)) is not None:  # or it has just ended
                    self._end_early(job, Outcome.CANCELLED, out)
            case PriorityChanged(request=request, priority=priority):
                if (job := self._admission.jobs.get(request)) is not None:
                    self._admission.prioritize(job, priority)
                    self._batching.abort_for(job, out)
            case _:
                assert_never(event)

    def step_ended(self, event: StepEvent, now: float, out: list[Action]) -> None:
        match event:
            case StepDone():
                ended = self._batching.done(event, now)
            case StepFailed():
                ended = self._batching.failed(event, now)
                if not event.aborted:
                    for job, _ in ended:
                        self._contexts.step_failed(job.context, out)
            case _:
                assert_never(event)
        for job, outcome in ended:
            self._finish(job, outcome, out)

    def chunks_came(self, event: SwitchEvent, now: float, out: list[Action]) -> None:
        match event:
            case Loaded():
                job, outcome = self._switching.loaded(event, now, out)
                if outcome is not None:
                    self._finish(job, outcome, out)
            case Fetched():
                self._switching.fetched(event, now, out)
            case _:
                assert_never(event)

    def _submitted(self, event: Submitted, now: float, out: list[Action]) -> None:
        context = self._contexts.use(event.context)
        job = self._admission.add(event, context, now)
        if event.deadline is not None:
            self._deadlines.add(event.request, event.deadline)
        self._pacing.add(job, event.rate)
        self._batching.abort_for(job, out)
        self._batching.abort_for_new(job, self._admission.jobs.values(), now, out)

    # -- the end of a call

    def _end_early(self, job: Job, outcome: Outcome, out: list[Action]) -> None:
        """The call ends early: now, or as soon as the step or the load that runs for it is over."""
        if job.ending is not None:
            return
        job.end_early(outcome)
        self._tally.expired += outcome is Outcome.EXPIRED
        if job.stage is Stage.LOADING:
            self._switching.stop(job, out)
        elif job.in_step:
            self._batching.abort_if_useless(out)
        else:
            self._finish(job, outcome, out)

    def _finish(self, job: Job, outcome: Outcome, out: list[Action]) -> None:
        self._admission.remove(job, out)
        self._deadlines.tidy()
        self._pacing.remove(job)
        job.context.committing = True
        out.append(Finish(job.request, job.context.id, outcome, job.context.cells))

    # -- what others may know

    def n_begun(self, context: ContextId) -> int:
        """Where the recomputation of the context that is under way ends, in tokens; 0 if none is."""
        jobs = self._admission.running.values()
        return max(
            (job.until for job in jobs if job.context.id == context and job.stage is Stage.RECOMPUTING), default=0
        )

    def check(self) -> list[str]:
        """Invariants of jobs that do not hold; empty when all is well."""
        return [problem for job in self._admission.jobs.values() for problem in job.check()]
