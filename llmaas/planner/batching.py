"""Engine steps: what one batch holds, and what its results mean for the calls in it.

Law: of the calls that are in CELLS the scheduling policy chooses; those that decode are all in the step, prompts share
what time is left, so that nobody waits for a step's end longer than ``step_target``. Only who is alone gets longer
ones, and those are aborted when somebody comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from llmaas.planner.actions import Outcome, RunStep, StepItem
from llmaas.planner.cost_model import SwitchCosts
from llmaas.planner.events import Drawn, StepDone
from llmaas.planner.jobs import Job, Stage
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.tally import Tally
from llmaas.policies.rate_limits import RateLimits
from llmaas.policies.scheduling import SchedulingPolicy
from llmaas.records import AppId, RequestId

_LEAST_SLICE = 16
"""Tokens of a prompt that a step holds at least, however slow the machine: smaller ones cost hardly less."""
_SLICE_UNIT = 8
_LONG = 1.5
"""A step that takes so many times the target is worth aborting."""
_OTHER_ADAPTER_BURST = 4
_COMPUTES = (Stage.DECODING, Stage.PREFILLING, Stage.RECOMPUTING)


class Batching:
    """The step that runs, and who may be in the next one."""

    def __init__(self, policy: SchedulingPolicy, costs: SwitchCosts, settings: PlannerSettings, tally: Tally) -> None:
        self._policy, self._costs, self._settings, self._tally = policy, costs, settings, tally
        self._rates, self._app_rates = RateLimits(), RateLimits(settings.app_rate)
        self._rates.set(None, settings.rate)
        self.duty = 1.0
        self._rested = 0.0
        """The moment from which the engine may compute again."""
        self.running: RunStep | None = None
        self.full = False
        """Somebody may need more cells for its next token."""
        self._began = 0.0

    # -- limits

    def limit(self, app: AppId | None, rate: float | None) -> None:
        (self._rates if app is None else self._app_rates).set(app, rate)

    def comes(self, job: Job, rate: float | None) -> None:
        """A call was submitted."""
        self._rates.set(job.request, rate)

    def ends(self, job: Job) -> None:
        self._rates.set(job.request, None)

    def ready(self, job: Job) -> float:
        """The moment from which its limits allow the call's next step."""
        return max(self._rates.ready(None, job.request), self._app_rates.ready(job.context.app))

    @property
    def _limited(self) -> bool:
        return bool(self._rates or self._app_rates)

    def _is_limited(self, job: Job) -> bool:
        return self._rates.limits(None, job.request) or self._app_rates.limits(job.context.app)

    # -- the next step

    def next(
        self, running: Iterable[Job], number: Callable[[], int], now: float
    ) -> tuple[RunStep | None, float | None]:
        """The next step, its jobs marked; or None, and when to ask again if a limit is why."""
        able = [job for job in running if job.stage in _COMPUTES and not job.ending and job.context.cells < job.reserve]
        if not able or self.running is not None:
            return None, None
        if self._rested > now:
            return None, self._rested
        if self._limited:
            free = [job for job in able if self.ready(job) <= now]
            if not free:
                return None, min(map(self.ready, able))
            able = free
        chosen = self._chosen(able, now) if len(able) > 1 else able
        group = chosen
        if any(job.adapter != chosen[0].adapter for job in chosen):
            first = min(chosen, key=lambda job: job.last_step)
            group = [job for job in chosen if job.adapter == first.adapter]
        items = self._items(group, running)
        paced = self._limited and any(map(self._is_limited, running))
        burst = 1 if paced else self._burst(group, several=group is not chosen)
        self.running, self._began = RunStep(number(), items, burst, group[0].adapter), now
        for job in group:
            if job.in_step:
                job.last_step = self.running.step
        return self.running, None

    def _chosen(self, able: list[Job], now: float) -> list[Job]:
        by_request = {job.request: job for job in able}
        return [by_request[request] for request in self._policy.select(list(by_request), now)]

    def _items(self, group: list[Job], running: Iterable[Job]) -> tuple[StepItem, ...]:
        settings = self._settings
        decoding = [job for job in group if job.stage is Stage.DECODING][: settings.max_batch]
        items = [_item(job, job.context.cells + 1, sample=True) for job in decoding]
        if len(decoding) == len(group):
            return tuple(items)
        room = settings.max_batch - len(items)
        seconds = settings.step_target - (self._costs.decode(len(items)) if items else 0.0)
        prompts = [job for job in group if job.stage is not Stage.DECODING]
        prompts.sort(key=lambda job: job.last_step)  # or a short one would wait for a long one
        for i, job in enumerate(prompts):
            start, end = job.context.cells, job.total if job.stage is Stage.PREFILLING else job.until
            most = self._slice(start, seconds, least=0 if i else _LEAST_SLICE)
            if not decoding and not job.cautious and _alone(job, running):
                most = settings.prefill_slice
            n = min(end - start, room, most)
            if n <= 0:
                continue
            sample = job.stage is Stage.PREFILLING and start + n == job.total and job.max_new > 0
            items.append(_item(job, start + n, sample=sample))
            room -= n
            seconds -= self._costs.compute(start, start + n)
        return tuple(items)

    def _slice(self, start: int, seconds: float, *, least: int) -> int:
        """Tokens of a prompt from ``start`` on that take no longer than ``seconds``; at least ``least``."""
        n = self._costs.slice(start, seconds) // _SLICE_UNIT * _SLICE_UNIT
        return min(max(n, least), self._settings.prefill_slice)

    def _burst(self, group: list[Job], *, several: bool) -> int:
        """Steps that this batch may take in a row: nobody may run past its end, its cells or its turn."""
        left, limit = self._settings.burst, self._settings.ctx_limit
        for job in group:
            if job.stage is not Stage.DECODING:
                return 1
            left = min(left, job.max_new - job.produced, job.reserve - job.context.cells, limit - job.total)
        if len(self._policy):
            left = min(left, *(self._policy.burst(job.request) for job in group))
        return max(1, min(left, _OTHER_ADAPTER_BURST) if several else left)

    def too_long_for(self, job: Job, jobs: Mapping[RequestId, Job]) -> bool:
        """Whether the step that runs should be aborted, since ``job`` has come: it is long, and no more urgent."""
        step = self.running
        if step is None or all(job.priority > jobs[item.request].priority for item in step.items):
            return False
        return self._seconds(step) > _LONG * self._settings.step_target

    def useless(self, jobs: Mapping[RequestId, Job]) -> bool:
        """Whether nobody wants the step that runs any more, and it is not over at once."""
        step = self.running
        if step is None or not all(jobs[item.request].ending for item in step.items):
            return False
        return any(item.stop - item.start > 1 for item in step.items)

    def _seconds(self, step: RunStep) -> float:
        return sum(self._costs.compute(i.start, i.stop) for i in step.items if i.stop - i.start > 1)

    # -- what comes of it

    def ended(self, number: int, jobs: Mapping[RequestId, Job], steps: int, now: float) -> RunStep | None:
        """The step is over, after so many of its burst (0: it failed). None if it is not the one that runs."""
        step, self.running = self.running, None
        if step is None or step.step != number:
            return None
        seconds = now - self._began
        if self.duty < 1.0:
            self._rested = now + seconds * (1.0 / self.duty - 1.0)
        for item in step.items:
            jobs[item.request].in_step = False
        if steps:
            self._costs.stepped(step, steps, seconds)
            self._account(step, jobs, steps, seconds, now)
        return step

    def _account(self, step: RunStep, jobs: Mapping[RequestId, Job], steps: int, seconds: float, now: float) -> None:
        """Note what each call was served; a slice of a prompt counts as the decode steps that take as long."""
        for item in step.items:
            job, n = jobs[item.request], item.stop - item.start
            answer = steps if item.sample else 0
            prompt, worth = 0, float(steps)
            if n > 1 or not item.sample:
                prompt, worth = n, max(1.0, seconds / self._costs.decode(1))
            if job.stage is Stage.RECOMPUTING:
                worth = 0.0
            self._policy.served(job.request, self._began, now, worth, prompt, answer)
            if self._limited:
                extra = self._costs.compute(item.start, item.stop) / self._costs.decode(1) if prompt else 0.0
                self._rates.charge(None, answer + extra, self._began)
                self._rates.charge(job.request, answer, self._began)
                self._app_rates.charge(job.context.app, answer, self._began)

    def stepped(self, job: Job, item: StepItem, drawn: Drawn, event: StepDone) -> Outcome | None:
        """Take one item's result into its job; the job's outcome if it has ended."""
        n = item.stop - item.start
        total = job.total
        job.context.cells = cells = item.stop + event.steps - 1
        self.full = self.full or cells >= job.reserve
        if event.steps > 1:
            job.produced += event.steps - 1
            self._tally.tokens_generated += event.steps - 1
        if job.stage is Stage.RECOMPUTING:
            job.recomputed += n
            if item.stop >= job.until:
                job.stage = Stage.SWITCHING
        elif job.stage is Stage.PREFILLING:
            self._tally.tokens_prefilled += n if not job.produced else 0
            if item.stop == total:
                job.stage = Stage.DECODING
        if drawn in (Drawn.TOKEN, Drawn.LAST):
            job.produced += 1
            self._tally.tokens_generated += 1
        return self._outcome(job, drawn)

    def _outcome(self, job: Job, drawn: Drawn) -> Outcome | None:
        if drawn in (Drawn.LAST, Drawn.END):
            return Outcome.STOP
        if job.ending is not None:
            return job.ending
        if job.stage is not Stage.DECODING:
            return None
        if job.max_new == 0:
            return Outcome.APPENDED
        if job.produced >= job.max_new:
            return Outcome.LENGTH
        return Outcome.CONTEXT_FULL if job.total >= self._settings.ctx_limit else None


def _alone(job: Job, running: Iterable[Job]) -> bool:
    """Whether nobody else in CELLS, as urgent or more, waits for the step's end."""
    return not any(other is not job and other.priority <= job.priority for other in running)


def _item(job: Job, stop: int, *, sample: bool) -> StepItem:
    assert job.context.seq is not None
    job.in_step = True
    return StepItem(job.request, job.context.id, job.context.seq, job.context.cells, stop, sample)
