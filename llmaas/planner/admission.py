"""Admission: which calls are in CELLS, and which leave when others are due.

Law: a call runs (its context has a sequence and a reservation of cells, its adapter has room in memory) or waits. It is
paused only between steps, keeps all that it has computed in CELLS until another call needs the room, and comes back
like any context: so nothing of it is computed twice.
"""

from __future__ import annotations

from llmaas.errors import PolicyBug
from llmaas.planner.actions import Action, Admitted, Paused
from llmaas.planner.cell_table import CellTable
from llmaas.planner.context import Context
from llmaas.planner.events import Submitted
from llmaas.planner.jobs import Job, Stage
from llmaas.planner.pool_room import PoolRoom
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.swap_out import SwapOut
from llmaas.planner.switching import Switching
from llmaas.planner.tally import Tally
from llmaas.policies.scheduling import SchedulingPolicy
from llmaas.records import RequestId


class Admission:
    """All calls that have not ended. ``running`` are those in CELLS, in the order of their admission."""

    def __init__(
        self,
        policy: SchedulingPolicy,
        cells: CellTable,
        room: PoolRoom,
        swap_out: SwapOut,
        switching: Switching,
        settings: PlannerSettings,
        tally: Tally,
    ) -> None:
        self._policy, self._cells, self._room, self._swap_out = policy, cells, room, swap_out
        self._switching, self._settings, self._tally = switching, settings, tally
        self.jobs: dict[RequestId, Job] = {}
        self.running: dict[RequestId, Job] = {}

    @property
    def waiting(self) -> int:
        """How many calls wait to be admitted."""
        return len(self._policy)

    @property
    def first_token_awaited(self) -> bool:
        """Whether a call waits to be admitted, for its context, or for its prompt."""
        return self.waiting > 0 or any(job.stage is not Stage.DECODING for job in self.running.values())

    @property
    def saves_may_rest(self) -> bool:
        """Whether ``first_token_awaited``, and no call waits for cells, or for what is being saved."""
        may_need_them = self.waiting > 0 or any(job.stage is Stage.SWITCHING for job in self.running.values())
        return self.first_token_awaited and not may_need_them

    # -- calls come and go

    def add(self, event: Submitted, context: Context, now: float) -> Job:
        """A call was submitted; it waits."""
        if event.n_total > self._settings.ctx_limit:
            raise PolicyBug(f"{event.n_total} tokens can never be in {self._settings.ctx_limit} cells")
        job = Job(event.request, context, event.n_total, event.max_new, event.priority)
        job.adapter, job.adapter_bytes = event.adapter, event.adapter_bytes
        job.spare_last = self._settings.state is not None
        self.jobs[event.request] = job
        context.wanted = True
        self._policy.add(event.request, context.app, event.priority, now)
        return job

    def prioritize(self, job: Job, priority: int) -> None:
        job.priority = priority
        self._policy.prioritize(job.request, priority)

    def switched_in(self, job: Job, now: float) -> None:
        """All of the job's context is in CELLS again."""
        self._policy.switched_in(job.request, now - job.admitted)

    def remove(self, job: Job, out: list[Action]) -> None:
        """The call has ended: it no longer waits or runs, and what was read ahead for it is released."""
        job.end()
        del self.jobs[job.request]
        self._policy.remove(job.request)
        job.context.wanted = False
        if self.running.pop(job.request, None) is not None:
            self._cells.stop(job.context, job.reserve)
        self._switching.release(job, out)

    # -- admission

    def admit(self, now: float, out: list[Action]) -> None:
        """Admit the calls that are due, and pause others if they must leave for them."""
        paused: list[Job] = []
        while (request := self._policy.head(now)) is not None:
            job = self.jobs[request]
            if job.context.committing:
                break  # it was paused a moment ago
            may_run = len(self.running) < self._settings.max_running and self._adapter_fits(job, [])
            if may_run and self._make_cells(job, self._reserve(job), now, out):
                self._begin(job, now, out)
                continue
            leaving = self._leaving(job, now)
            if not leaving:
                break
            for other in leaving:
                self._pause(other, out)
            paused += leaving
        self._release(paused, out)

    def _begin(self, job: Job, now: float, out: list[Action]) -> None:
        context = job.context
        job.admit(self._reserve(job), now)
        self._policy.admit(job.request)
        context.wanted = False
        self._cells.start(context, job.reserve)
        self.running[job.request] = job
        if job.from_cells < context.n_kv:
            self._room.switching_in(context, now)
        assert context.seq is not None
        out.append(Admitted(job.request, context.seq))

    def _adapter_fits(self, job: Job, leaving: list[Job]) -> bool:
        """Whether the job's adapter fits into memory beside those of the running calls, without those that leave.

        Where no other is in use it must: or it would wait for ever.
        """
        if not job.adapter:
            return True
        staying = (j for j in self.running.values() if j.adapter and j not in leaving)
        used = {j.adapter: j.adapter_bytes for j in staying}
        return not used or job.adapter in used or sum(used.values()) + job.adapter_bytes <= self._settings.adapter_bytes

    def _reserve(self, job: Job) -> int:
        """Cells for what it has, and for what it may generate in one quantum."""
        more = min(job.max_new - job.produced, self._settings.quantum)
        return min(job.total + more, self._settings.ctx_limit)

    def _make_cells(self, job: Job, reserve: int, now: float, out: list[Action]) -> bool:
        """Drop idle contexts until the job has room for ``reserve`` cells in all; False if that must wait."""
        context = job.context
        more = reserve - (job.reserve if context.running else context.cells)
        victims = self._cells.victims(more, context)
        if victims is None and self._swap_out.hurry(now, out):
            victims = self._cells.victims(more, context)
        if victims is None:
            return False
        for other in victims:
            self._cells.trim(other, 0, out)
            self._swap_out.left_cells(other, now)
            self._tally.contexts_left_cells += 1
        return True

    def _leaving(self, job: Job, now: float) -> list[Job]:
        """Running calls that must leave so that the job can begin; none if it is enough to wait, or of no use."""
        short = self._cells.lacking(self._reserve(job))
        may_run = len(self.running) < self._settings.max_running and self._cells.has_seq_for(job.context)
        only_adapter = short <= 0 and may_run
        if only_adapter and self._adapter_fits(job, []):
            return []  # idle contexts leave as soon as what they hold is saved
        leaving = []
        for other in self._able_to_leave(job, now):
            if only_adapter and not other.adapter:
                continue
            leaving.append(other)
            short -= other.reserve
            if short <= 0 and self._adapter_fits(job, leaving):
                return leaving
        return []

    def _able_to_leave(self, job: Job, now: float) -> list[Job]:
        """Running calls that can be paused now and must give way to the job, the least urgent first."""
        able = [
            other
            for other in self.running.values()
            if not other.in_step
            and other.stage is not Stage.LOADING
            and other.ending is None
            and self._policy.gives_way(other.request, job.request, now)
        ]
        return sorted(able, key=lambda other: -self._policy.urgency(other.request, now))

    # -- while they run

    def grow(self, now: float, out: list[Action]) -> bool:
        """Get cells for the next tokens of calls that decode; pause those for which there are none.

        True if calls are left that have no cells yet, and wait for others' chunks to be saved.
        """
        paused = []
        for job in [job for job in self.running.values() if job.full]:
            wanted = self._reserve(job)
            if self._make_cells(job, wanted, now, out):
                self._cells.grow(wanted - job.reserve)
                job.reserve = wanted
            elif self._cells.lacking(wanted - job.reserve) > 0:
                self._pause(job, out)
                paused.append(job)
        self._release(paused, out)
        return any(job.full for job in self.running.values())

    def _pause(self, job: Job, out: list[Action]) -> None:
        """The call waits again. Its cells are like those of any idle context."""
        job.pause()
        del self.running[job.request]
        self._cells.stop(job.context, job.reserve)
        job.context.committing = job.context.wanted = True
        self._policy.pause(job.request)
        self._tally.pauses += 1
        out.append(Paused(job.request, job.context.id, job.context.cells))

    def _release(self, paused: list[Job], out: list[Action]) -> None:
        """What was read ahead for paused calls may leave the POOL; not before all of the others have been admitted."""
        for job in paused:
            self._switching.release(job, out)
