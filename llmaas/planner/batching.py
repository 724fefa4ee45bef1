"""Engine steps: what one batch holds, and what its results mean for the calls in it.

Law: the scheduling policy chooses among the calls in CELLS. All chosen calls that decode are in the step, and prompts
share the time that is left, so that no call waits longer than ``step_target`` for a step's end. Only a call that is
alone gets longer steps, and those are aborted when another call comes. A model that keeps one state per sequence cannot
take back part of a step, so an abort would cost the whole sequence: its steps are never aborted, and never longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from llmaas.errors import PolicyBug
from llmaas.planner.actions import AbortStep, Action, Outcome, RunStep, StepItem
from llmaas.planner.cost_model import SwitchCosts
from llmaas.planner.events import Drawn, StepDone, StepFailed
from llmaas.planner.jobs import COMPUTING, Job, Stage
from llmaas.planner.pacing import Pacing
from llmaas.planner.precedence import SHARED, Precedence
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.tally import Tally
from llmaas.policies.scheduling import SchedulingPolicy

_LEAST_SLICE = 16
"""Tokens of a prompt that a step holds at least, however slow the machine: smaller ones cost hardly less."""
_SLICE_UNIT = 8
_LONE_S, _LEAST_LONE_SLICE = 4.0, 128
"""How long a step may take in which one call alone reads its prompt: a call that comes undoes that much. But short
steps of few tokens would cost a slow machine a fifth of its speed."""
_ENDING = 1.5
"""A prompt that is first in a step may make it so many times as long, if it ends then: it saves a step."""
_LONG = 1.5
"""A step that takes so many times the target is worth aborting."""
_LEAST_DRAW_S, _DRAWS = 0.004, 0.5
"""Seconds, and decode steps, that draws by grammars take in a step beside other apps. Less would bring others' tokens
sooner, and these later: a draw that is put off costs one more decode step."""
_OTHER_ADAPTER_BURST = 4
"""Steps in a row at most while a call with another adapter waits for the next one."""


class Batching:
    """The step that runs, and the choice of the next one."""

    def __init__(
        self,
        policy: SchedulingPolicy,
        costs: SwitchCosts,
        pacing: Pacing,
        settings: PlannerSettings,
        tally: Tally,
        next_id: Callable[[], int],
    ) -> None:
        self._policy, self._costs, self._pacing = policy, costs, pacing
        self._settings, self._tally, self._next_id = settings, tally, next_id
        self._abortable = settings.swappable
        """Whether a sequence can be as it was before a step that was aborted."""
        self._precedence = Precedence(policy, costs, settings)
        self.running: RunStep | None = None
        self._jobs: list[Job] = []
        """Those in the step that runs, parallel to its items."""
        self._began = 0.0
        self.full = False
        """A call may need more cells for its next token."""

    # -- the next step

    def begin(self, in_cells: Collection[Job], now: float, out: list[Action]) -> float | None:
        """Begin a step, of some of the calls in CELLS. If only a limit forbids that: the moment to ask again."""
        able = [
            job for job in in_cells if job.stage in COMPUTING and job.ending is None and job.context.cells < job.reserve
        ]
        if not able or self.running is not None:
            return None
        pacing = self._pacing
        if pacing.rests_until > now:
            return pacing.rests_until
        if pacing.limited:
            free = [job for job in able if pacing.ready(job) <= now]
            if not free:
                return min(map(pacing.ready, able))
            able = free
        group, several = self._choose(able, now) if len(able) > 1 else (able, False)
        paced = pacing.limited and any(map(pacing.limits, in_cells))
        burst = 1 if paced else self._burst(group, several=several)
        number = self._next_id()
        items = self._items(number, group, in_cells, now)
        draw_s = self._draw_s(group, now)
        self.running, self._began = RunStep(number, items, burst, group[0].adapter, draw_s), now
        out.append(self.running)
        return None

    def _choose(self, able: list[Job], now: float) -> tuple[list[Job], bool]:
        """Calls that the policy chooses and that share one adapter; and whether it chose others, with another one."""
        by_request = {job.request: job for job in able}
        chosen = [by_request[request] for request in self._policy.select(list(by_request), now)]
        if all(job.adapter == chosen[0].adapter for job in chosen):
            return chosen, False
        first = min(chosen, key=lambda job: job.last_step)
        return [job for job in chosen if job.adapter == first.adapter], True

    def _items(self, step: int, group: list[Job], in_cells: Collection[Job], now: float) -> tuple[StepItem, ...]:
        """What the step holds: all that decode, and slices of prompts."""
        decoding = [job for job in group if job.stage is Stage.DECODING][: self._settings.max_batch]
        prompts = [job for job in group if job.stage is not Stage.DECODING]
        prompts.sort(key=lambda job: job.last_step)  # or a short one would wait for a long one
        first, later = self._precedence.split(prompts, in_cells, now)
        decoding = self._precedence.decoding(decoding, first, now)
        items = [self._item(step, job, job.context.cells + 1, sample=True) for job in decoding]
        if prompts:
            target = self._precedence.target(first, later, in_cells, now)
            self._add_prompts(step, first, later, items, target, in_cells)
        return tuple(items)

    def _add_prompts(
        self,
        step: int,
        first: list[Job],
        later: list[Job],
        items: list[StepItem],
        target: float,
        in_cells: Collection[Job],
    ) -> None:
        """Fill the step up, within the batch and the ``target`` seconds; those ``items`` decode already."""
        n_decoding = len(items)
        room = self._settings.max_batch - n_decoding
        seconds = target - (self._costs.decode(n_decoding) if n_decoding else 0.0)
        least = _LEAST_SLICE if target == self._settings.step_target else _SLICE_UNIT
        for i, job in enumerate((*first, *later)):
            if i == len(first):
                seconds -= (1 - SHARED) * target
            prefills = job.stage is Stage.PREFILLING
            start, end = job.context.cells, job.prefill_end if prefills else job.until
            most = self._slice(start, seconds, least=0 if i else least)
            if not i and end - start <= min(_ENDING * most, self._settings.prefill_slice):
                most = end - start
            if self._abortable and not n_decoding and not job.cautious and _alone(job, in_cells):
                most = max(most, self._slice(start, _LONE_S, least=_LEAST_LONE_SLICE))
            stop = start + min(end - start, room, most)
            if stop <= start:
                continue
            sample = prefills and stop == job.total and job.max_new > 0
            items.append(self._item(step, job, stop, sample=sample))
            room -= stop - start
            seconds -= self._costs.compute(start, stop)

    def _item(self, step: int, job: Job, stop: int, *, sample: bool) -> StepItem:
        context = job.context
        assert context.seq is not None
        job.join_step(step, stop)
        self._jobs.append(job)
        return StepItem(job.request, context.id, context.seq, context.cells, stop, sample)

    def _slice(self, start: int, seconds: float, *, least: int) -> int:
        """Tokens of a prompt from ``start`` on that take no longer than ``seconds``; at least ``least``."""
        n = self._costs.slice(start, seconds) // _SLICE_UNIT * _SLICE_UNIT
        return min(max(n, least), self._settings.prefill_slice)

    def _draw_s(self, group: list[Job], now: float) -> float:
        """Seconds that draws by grammars may take in the step; what takes longer costs one more decode step."""
        if not self._policy.has_others(group[0].request, now):
            return math.inf
        return max(_LEAST_DRAW_S, _DRAWS * self._costs.decode(1))

    def _burst(self, group: list[Job], *, several: bool) -> int:
        """Steps that this batch may take in a row: no call may pass its end, its cells or its quantum."""
        left, limit = self._settings.burst, self._settings.ctx_limit
        for job in group:
            if job.stage is not Stage.DECODING:
                return 1
            left = min(left, job.max_new - job.produced, job.reserve - job.context.cells, limit - job.total)
        if len(self._policy):
            left = min(left, *(self._policy.burst(job.request) for job in group))
        return max(1, min(left, _OTHER_ADAPTER_BURST) if several else left)

    # -- a step that is no longer wanted

    def abort_for(self, job: Job, out: list[Action]) -> None:
        """``job`` has come, or has become more urgent: abort the step that runs if that is long and no more urgent."""
        step = self.running
        if step is None or not self._abortable or all(job.priority > other.priority for other in self._jobs):
            return
        seconds = sum(self._costs.compute(i.start, i.stop) for i in step.items if i.stop - i.start > 1)
        if seconds > _LONG * self._settings.step_target:
            out.append(AbortStep(step.step))

    def abort_for_new(self, job: Job, calls: Collection[Job], now: float, out: list[Action]) -> None:
        """``job`` has come, beside all other ``calls``: abort the step that runs if that has long to go, and holds
        prompts of apps that take much more than its own."""
        step = self.running
        if step is not None and self._precedence.is_aborted_for(job, step, self._jobs, calls, self._began, now):
            out.append(AbortStep(step.step))

    def abort_if_useless(self, out: list[Action]) -> None:
        """Abort the step that runs if all its calls are to end, and it does not end soon by itself."""
        step = self.running
        if step is None or not self._abortable or any(job.ending is None for job in self._jobs):
            return
        if any(item.stop - item.start > 1 for item in step.items):
            out.append(AbortStep(step.step))

    # -- what comes of it

    def done(self, event: StepDone, now: float) -> list[tuple[Job, Outcome]]:
        """The step (or a burst of them) was computed; the jobs that end with it."""
        step, jobs, seconds = self._end(event.step, now)
        self._costs.observe_step(step, event.steps, seconds)
        self._precedence.ended(seconds)
        ended = []
        for job, item, drawn in zip(jobs, step.items, event.drawn, strict=True):
            self._account(job, item, event.steps, seconds, now)
            if (outcome := self._advance(job, item, drawn, event.steps)) is not None:
                ended.append((job, outcome))
        return ended

    def failed(self, event: StepFailed, now: float) -> list[tuple[Job, Outcome]]:
        """The step was aborted, or the engine could not run it; the jobs that end with it."""
        self._tally.steps_aborted += event.aborted
        step, jobs, seconds = self._end(event.step, now, aborted=event.aborted)
        if event.aborted:
            self._charge_left(step, jobs, seconds, now)
        outcomes = ((job, Outcome.ENGINE_FAILED if job.ending is None else job.ending) for job in jobs)
        return [(job, outcome) for job, outcome in outcomes if job.ending is not None or not event.aborted]

    def _end(self, number: int, now: float, *, aborted: bool = False) -> tuple[RunStep, list[Job], float]:
        """The step is over: it, its jobs, and the seconds that it took."""
        step, self.running = self.running, None
        if step is None or step.step != number:
            raise PolicyBug(f"step {number} ended but was not running")
        seconds = now - self._began
        self._pacing.rest(seconds, now)
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.leave_step(aborted=aborted)
        return step, jobs, seconds

    def _account(self, job: Job, item: StepItem, steps: int, seconds: float, now: float) -> None:
        """Charge the call for what it was served; a slice of a prompt counts as the decode steps that take as long."""
        n = item.stop - item.start
        answer = steps if item.sample else 0
        prompt, worth = 0, float(steps)
        if n > 1 or not item.sample:
            prompt, worth = n, max(1.0, seconds / self._costs.decode(1))
        if job.stage is Stage.RECOMPUTING:
            worth = 0.0
        self._policy.served(job.request, self._began, now, worth, prompt, answer)
        if self._pacing.limited:
            extra = self._costs.compute(item.start, item.stop) / self._costs.decode(1) if prompt else 0.0
            self._pacing.charge(job, answer, extra, self._began)

    def _charge_left(self, step: RunStep, jobs: list[Job], seconds: float, now: float) -> None:
        """An aborted step costs the apps that have left it: whoever asks and goes is served too."""
        for job, item in zip(jobs, step.items, strict=True):
            if job.ending is not None and item.stop - item.start > 1:
                n = min(item.stop - item.start, self._costs.slice(item.start, seconds))
                self._policy.served(job.request, self._began, now, 0.0, n, 0)

    def _advance(self, job: Job, item: StepItem, drawn: Drawn, steps: int) -> Outcome | None:
        """Take one item's result into its job; the job's outcome if it has ended."""
        job.context.cells = cells = item.stop + steps - 1 - (drawn is Drawn.LATER)
        if cells >= job.reserve:
            self.full = True
        if job.stage is Stage.RECOMPUTING:
            job.recomputed += item.stop - item.start
            if item.stop >= job.until:
                job.end_recompute()
        elif job.stage is Stage.PREFILLING:
            self._tally.tokens_prefilled += item.stop - item.start if not job.produced else 0
            if item.stop == job.prefill_end:
                job.end_prefill()
        n_drawn = steps if drawn is Drawn.TOKEN or drawn is Drawn.LAST else steps - 1
        job.produced += n_drawn
        self._tally.tokens_generated += n_drawn
        return self._outcome(job, drawn)

    def _outcome(self, job: Job, drawn: Drawn) -> Outcome | None:
        if drawn is Drawn.LAST or drawn is Drawn.END:
            return Outcome.STOP
        if job.ending is not None:
            return job.ending
        if job.stage is not Stage.DECODING or drawn is Drawn.LATER:
            return None
        if job.max_new == 0:
            return Outcome.APPENDED
        if job.produced >= job.max_new:
            return Outcome.LENGTH
        return Outcome.CONTEXT_FULL if job.total >= self._settings.ctx_limit else None


def _alone(job: Job, in_cells: Collection[Job]) -> bool:
    """Whether no other call in CELLS, as urgent or more, waits for the step's end."""
    return not any(other is not job and other.priority <= job.priority for other in in_cells)
