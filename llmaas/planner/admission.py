"""Turns: which calls are in CELLS, and who leaves when others are due.

Law: a call runs (its context has a sequence and a reservation of cells, its adapter has room in memory) or waits. It is
paused only between steps, keeps all that it has computed in CELLS until somebody needs the room, and comes back like
any context: so nothing of it is computed twice.
"""

from __future__ import annotations

import heapq

from llmaas.errors import PolicyBug
from llmaas.planner.actions import Action, Admitted, Paused
from llmaas.planner.cell_table import CellTable
from llmaas.planner.context import Context
from llmaas.planner.events import Submitted
from llmaas.planner.jobs import Job, Stage
from llmaas.planner.pool_books import SwapBooks
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.tally import Tally
from llmaas.policies.scheduling import SchedulingPolicy
from llmaas.records import RequestId

_FEW_DEADLINES = 64


class Admission:
    """All calls that have not ended. ``running`` are those in CELLS, in the order of their admission."""

    def __init__(
        self, policy: SchedulingPolicy, cells: CellTable, swap: SwapBooks, settings: PlannerSettings, tally: Tally
    ) -> None:
        self._policy, self._cells, self._swap = policy, cells, swap
        self._settings, self._tally = settings, tally
        self.jobs: dict[RequestId, Job] = {}
        self.running: dict[RequestId, Job] = {}
        self.deadlines: list[tuple[float, RequestId]] = []
        """A heap; calls that have ended are in it until their deadline, or until there are too many of them."""

    # -- calls come and go

    def submit(self, event: Submitted, context: Context, now: float) -> Job:
        if event.n_total > self._settings.ctx_limit:
            raise PolicyBug(f"{event.n_total} tokens can never be in {self._settings.ctx_limit} cells")
        job = Job(event.request, context, event.n_total, event.max_new, event.priority, event.deadline)
        job.adapter, job.adapter_bytes = event.adapter, event.adapter_bytes
        self.jobs[event.request] = job
        context.wanted = True
        self._policy.add(event.request, context.app, event.priority, now)
        if event.deadline is not None:
            heapq.heappush(self.deadlines, (event.deadline, event.request))
        return job

    def end(self, job: Job) -> None:
        """The call is over: it no longer waits or runs."""
        job.end()
        del self.jobs[job.request]
        self._policy.remove(job.request)
        job.context.wanted = False
        if self.running.pop(job.request, None) is not None:
            self._cells.stop(job.context, job.reserve)
        if len(self.deadlines) > max(_FEW_DEADLINES, 2 * len(self.jobs)):
            self.deadlines = [(d, request) for d, request in self.deadlines if request in self.jobs]
            heapq.heapify(self.deadlines)

    def expired(self, now: float) -> list[Job]:
        """Calls whose deadline has passed, each once."""
        late: list[Job] = []
        while self.deadlines and self.deadlines[0][0] <= now:
            job = self.jobs.get(heapq.heappop(self.deadlines)[1])
            if job is not None and job.ending is None:
                late.append(job)
        return late

    @property
    def next_deadline(self) -> float | None:
        while self.deadlines and self.deadlines[0][1] not in self.jobs:
            heapq.heappop(self.deadlines)
        return self.deadlines[0][0] if self.deadlines else None

    # -- admission

    def admit(self, now: float, out: list[Action]) -> list[Job]:
        """Let those in who are due; whoever must leave for them is paused. Those, whose reads are to be let go."""
        paused: list[Job] = []
        while (request := self._policy.head(now)) is not None:
            job = self.jobs[request]
            if job.context.committing:
                break  # it was paused a moment ago
            seat = len(self.running) < self._settings.max_running and self._adapter_fits(job, [])
            if seat and self._make_cells(job, self._reserve(job), now, out):
                self._begin(job, now, out)
                continue
            leaving = self._leaving(job, now)
            if not leaving:
                break
            for other in leaving:
                self.pause(other, out)
            paused += leaving
        return paused

    def _adapter_fits(self, job: Job, leaving: list[Job]) -> bool:
        """Whether the job's adapter fits into memory beside those of the running calls, without those who leave.

        Where no other is in use it must: or it would wait for ever.
        """
        if not job.adapter:
            return True
        staying = (j for j in self.running.values() if j.adapter and j not in leaving)
        used = {j.adapter: j.adapter_bytes for j in staying}
        return not used or job.adapter in used or sum(used.values()) + job.adapter_bytes <= self._settings.adapter_bytes

    def _reserve(self, job: Job) -> int:
        """Cells for what it has, and for what it may generate in one turn."""
        more = min(job.max_new - job.produced, self._settings.quantum)
        return min(job.total + more, self._settings.ctx_limit)

    def _begin(self, job: Job, now: float, out: list[Action]) -> None:
        context = job.context
        job.admit(self._reserve(job), now)
        self._policy.admit(job.request)
        context.wanted = False
        self._cells.start(context, job.reserve)
        self.running[job.request] = job
        if job.from_cells < context.n_kv:
            self._swap.returned(context, now)
        assert context.seq is not None
        out.append(Admitted(job.request, context.seq))

    def _make_cells(self, job: Job, reserve: int, now: float, out: list[Action]) -> bool:
        """Drop idle contexts until the job has room for ``reserve`` cells in all; False if that must wait."""
        context = job.context
        have = job.reserve if context.running else context.cells if context.id in self._cells.idle else 0
        victims = self._cells.victims(reserve - have, context)
        if victims is None and self._swap.hurry():
            self._swap.pump_saves(now, out)
            victims = self._cells.victims(reserve - have, context)
        if victims is None:
            return False
        for other in victims:
            self._swap.touch(other.keys, now)  # used until now, only not from the POOL
            self._cells.trim(other, 0, out)
            self._swap.writes.left_cells(other.id)
            self._tally.contexts_left_cells += 1
        return True

    def _leaving(self, job: Job, now: float) -> list[Job]:
        """Running calls that must leave so that the job can begin; none if it is enough to wait, or of no use."""
        context = job.context
        have = context.cells if context.id in self._cells.idle else 0
        short = self._cells.short(self._reserve(job) - have, context)
        seat = len(self.running) < self._settings.max_running and self._cells.seq_for(context)
        room = short <= 0 and seat
        if room and self._adapter_fits(job, []):
            return []  # idle contexts leave as soon as what they hold is saved
        able = [j for j in self.running.values() if not j.in_step and j.stage is not Stage.LOADING and not j.ending]
        able = [j for j in able if self._policy.gives_way(j.request, job.request, now)]
        able = [j for j in able if j.adapter or not room]
        able.sort(key=lambda j: -self._policy.urgency(j.request, now))
        leaving = []
        for other in able:
            leaving.append(other)
            short -= other.reserve
            if short <= 0 and self._adapter_fits(job, leaving):
                return leaving
        return []

    # -- while they run

    def grow(self, now: float, out: list[Action]) -> list[Job]:
        """See that whoever decodes has cells for its next token; who finds none is paused. The paused ones."""
        paused = []
        for job in [job for job in self.running.values() if job.full]:
            wanted = self._reserve(job)
            if self._make_cells(job, wanted, now, out):
                self._cells.grow(wanted - job.reserve)
                job.reserve = wanted
            elif self._cells.short(wanted - job.reserve, job.context) > 0:
                self.pause(job, out)
                paused.append(job)
        return paused

    def pause(self, job: Job, out: list[Action]) -> None:
        """The call waits again. Its cells are like those of any idle context."""
        job.pause()
        del self.running[job.request]
        self._cells.stop(job.context, job.reserve)
        job.context.committing = job.context.wanted = True
        self._policy.pause(job.request)
        self._tally.pauses += 1
        out.append(Paused(job.request, job.context.id, job.context.cells))
