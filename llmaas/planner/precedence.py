"""Precedence: whose prompt goes first into a step, and when the step that runs is aborted for it.

Law: an app that takes little does not wait for prompts of an app that takes much. What an app takes is what it was
served lately and what its prompts in CELLS still need. A step that holds a prompt of the first gives the others' what
little time is left, and a step of theirs that has long to go is aborted when its call comes. Steps that are aborted for
that cost a fixed part of the engine's time at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from llmaas.planner.actions import RunStep
from llmaas.planner.cost_model import SwitchCosts
from llmaas.planner.jobs import COMPUTING, Job, Stage
from llmaas.planner.settings import PlannerSettings
from llmaas.policies.scheduling import SchedulingPolicy
from llmaas.records import AppId

SHARED = 0.25
"""Part of the step's target up to which others' prompts fill a step with a prompt that goes first."""
_SHORT = 3.0
"""Decode steps that a step with prompts takes at most while an app may come back beside a flood: what it asks waits for
the step's end. With 4 its first token came 1.25 times as late as without the flood, with 3 1.15 times; the flood reads
its prompts slower by an eighth, and by a sixth, since a step takes about one decode step whatever it holds."""
_ROWS = 4
"""Calls of one app that decode in a step with a prompt of an app that takes little, at most."""
_WANTS = 2.0
"""Steps that an app's prompts count as at most. If long prompts counted whole, many short ones of another app could
always go first."""
_WORTH_WAITING = 1 / 6
"""Part of the step's target that a step may still take without being aborted."""
_LOST = 0.05
"""Part of the engine's time that steps which are aborted for a call that comes may take. That much an app that floods
loses of its speed, and others win: with a tenth, nine in ten first tokens beside a flood came in 50 ms instead of 80,
and without any in 110."""
_MOST_LOST = 2.0
"""How many such steps of the target's length may be aborted in a row, after long without any."""


class Precedence:
    """Asks the policy which app takes much more than another one."""

    def __init__(self, policy: SchedulingPolicy, costs: SwitchCosts, settings: PlannerSettings) -> None:
        self._policy, self._costs, self._on = policy, costs, settings.rules > 1
        self._abortable = self._on and settings.swappable
        self._target = settings.step_target
        self._credit = self._most_credit = _MOST_LOST * self._target
        """Seconds of steps that may be lost now."""
        self._aborting = 0
        """The last step that was aborted for a call."""

    def split(self, prompts: list[Job], in_cells: Collection[Job], now: float) -> tuple[list[Job], list[Job]]:
        """The jobs whose prompts go first, and those of apps that take much more; both in the order given.

        An app's only call does not wait for prompts of some tokens if one step does for its own: it would take two, for
        what little time is left beside others.
        """
        wants = _wants(prompts)
        if len(wants) < 2 or not self._on:
            return prompts, []
        calls = {job.context.app: job for job in prompts}
        later = {app for app, job in calls.items() if any(self._outdoes(job, o, wants, now) for o in calls.values())}
        first = [job for job in prompts if job.context.app not in later]
        if later and sum(map(self._own, first)) <= SHARED * self._target:
            n_calls = Counter(job.context.app for job in in_cells)
            later = {app for app in later if n_calls[app] > 1 or self._own(calls[app]) > self._target}
            first = [job for job in prompts if job.context.app not in later]
        return first, [job for job in prompts if job.context.app in later]

    def target(self, first: list[Job], later: list[Job], in_cells: Collection[Job], now: float) -> float:
        """Seconds that the step may take: less if one of its prompts is of an app that floods, with several calls or
        with more than a step's prompt, while another one may come back: its prompts then stand last in ``first``.
        Prompts that wait wait for one that has come."""
        if later or not self._on:
            return self._target
        n_calls = Counter(job.context.app for job in in_cells)
        apps = {job.context.app: job for job in first}
        much = {app for app, job in apps.items() if n_calls[app] > 1 or self._own(job) > self._target}
        floods = {app: app in much and self._policy.floods(job.request, now) for app, job in apps.items()}
        if not any(floods.values()):
            return self._target
        first.sort(key=lambda job: floods[job.context.app])  # there is little room, and others' prompts need little
        return min(self._target, _SHORT * self._costs.decode(1))

    def decoding(self, decoding: list[Job], first: list[Job], now: float) -> list[Job]:
        """Those of the calls that decode that share a step with the prompts that go ``first``: of an app that takes
        much more than these only some, in turn, since each makes the step longer."""
        n_calls = Counter(job.context.app for job in decoding)
        if not first or not self._on or max(n_calls.values(), default=0) <= _ROWS:
            return decoding
        wants = _wants(first)
        prompts = {job.context.app: job for job in first}
        apps = {job.context.app: job for job in decoding if n_calls[job.context.app] > _ROWS}
        cut = {a for a, job in apps.items() if all(self._outdoes(job, other, wants, now) for other in prompts.values())}
        chosen, n_chosen = set[Job](), Counter[AppId]()
        for job in sorted(decoding, key=lambda job: job.last_step):
            if job.context.app not in cut or n_chosen[job.context.app] < _ROWS:
                chosen.add(job)
                n_chosen[job.context.app] += 1
        return [job for job in decoding if job in chosen]

    def is_aborted_for(
        self, job: Job, step: RunStep, others: Sequence[Job], calls: Collection[Job], began: float, now: float
    ) -> bool:
        """Whether the step that runs since ``began``, with ``others``, is aborted for the ``job`` that has come.

        ``calls``: all that wait or are in CELLS.

        Only where that brings the job's first token: one step must do for its prompt.
        """
        elapsed = now - began
        if not self._abortable or step.step == self._aborting or elapsed > self._credit:
            return False
        if _left(job) <= 0 or self._own(job) > self._target:
            return False
        if self._seconds(step) - elapsed < _WORTH_WAITING * self._target:
            return False
        reading = [(other, item) for other, item in zip(others, step.items, strict=True) if item.stop - item.start > 1]
        ending = [other for other, item in reading if item.stop == other.prefill_end]
        if any(other.cautious for other in ending):
            return False  # it was aborted before, and could be so without end
        n_calls = Counter(other.context.app for other in calls)
        if len(ending) == len(reading) and all(n_calls[other.context.app] == 1 for other in ending):
            return False  # an app whose only call waits for its first token floods nobody
        wants = _wants([*(other for other in calls if other.stage in COMPUTING), job])
        if any(job.priority > other.priority or not self._outdoes(other, job, wants, now) for other, _ in reading):
            return False
        self._credit -= elapsed
        self._aborting = step.step
        return True

    def ended(self, seconds: float) -> None:
        """A step was computed in so many seconds."""
        self._credit = min(self._most_credit, self._credit + _LOST * seconds)

    def _own(self, job: Job) -> float:
        """Seconds that what is left of the job's prompt takes."""
        return self._costs.compute(job.total - _left(job), job.total)

    def _outdoes(self, job: Job, other: Job, wants: Counter[AppId], now: float) -> bool:
        app, than = job.context.app, other.context.app
        most = self._costs.slice(0, _WANTS * self._target)
        return app != than and self._policy.outdoes(job.request, min(most, wants[app]), other.request, wants[than], now)

    def _seconds(self, step: RunStep) -> float:
        """How long the step takes, as far as it is known; 0.0 if it holds no prompt."""
        prompts = [item for item in step.items if item.stop - item.start > 1]
        n_decoding = len(step.items) - len(prompts)
        if not prompts:
            return 0.0
        seconds = sum(self._costs.compute(item.start, item.stop) for item in prompts)
        return seconds + (self._costs.decode(n_decoding) if n_decoding else 0.0)


def _wants(jobs: Collection[Job]) -> Counter[AppId]:
    """Tokens of prompts that are still to be computed, for each app."""
    wants = Counter[AppId]()
    for job in jobs:
        if job.stage is not Stage.DECODING:
            wants[job.context.app] += _left(job)
    return wants


def _left(job: Job) -> int:
    """Tokens that are to be computed before the job's next one, as far as is known before its context is back."""
    cells = job.context.cells
    return job.total - (cells if job.stage in COMPUTING else max(cells, job.covered))
