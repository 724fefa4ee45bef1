"""The planner: every decision of the service, pure and synchronous.

Law: ``handle(event, now) -> actions``. It reads no clock, file, socket or model, so the same code runs the live
service and the replay of a trace. Work per event does not grow with idle contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmaas.planner.actions import Action, DropDisk, Finish, Outcome, WakeAt
from llmaas.planner.admission import Admission
from llmaas.planner.batching import Batching
from llmaas.planner.cell_table import CellTable
from llmaas.planner.context import Context
from llmaas.planner.events import (
    BudgetChanged,
    CancelRequested,
    ChunksFound,
    ContextChanged,
    ContextClosed,
    ContextOpened,
    DutyChanged,
    Event,
    Fetched,
    Flush,
    Loaded,
    Lowered,
    Measured,
    PriorityChanged,
    RateChanged,
    Saved,
    StepDone,
    StepFailed,
    Submitted,
    Woken,
    Written,
)
from llmaas.planner.jobs import Job, Stage
from llmaas.planner.pacing import Pacing
from llmaas.planner.pool_books import SwapBooks
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.switching import Switching
from llmaas.planner.tally import Tally
from llmaas.policies.eviction import EVICTION, EvictionPolicy
from llmaas.policies.scheduling import SCHEDULING
from llmaas.policies.split import SPLIT
from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextId, Tier


class Planner:
    """Holds the ledger and calls the policies."""

    def __init__(self, settings: PlannerSettings, *, eviction: EvictionPolicy | None = None) -> None:
        """``eviction``: a policy in place of the one that the settings name, for experiments."""
        self.settings = settings
        self.tally = Tally()
        policy = EVICTION[settings.eviction]() if eviction is None else eviction
        self._swap = SwapBooks(settings, policy, self.tally)
        self._policy = SCHEDULING[settings.scheduling](settings.quantum, settings.ageing_s)
        self._cells = CellTable(settings.n_cells, settings.n_seqs, cuttable=settings.swappable)
        self._switching = Switching(self._swap, self._cells, SPLIT[settings.split](), settings, self.tally)
        self._turns = Admission(self._policy, self._cells, self._swap, settings, self.tally)
        self._pacing = Pacing(settings)
        costs = self._switching.costs
        self._steps = Batching(self._policy, costs, self._pacing, settings, self.tally, self._swap.next_id)
        self._contexts: dict[ContextId, Context] = {}
        self._armed: float | None = None
        """When we asked to be woken."""
        self._out: list[Action] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            ContextOpened: self._opened,
            ContextChanged: self._changed,
            ContextClosed: self._closed,
            ChunksFound: self._found,
            Submitted: self._submitted,
            CancelRequested: self._cancel,
            PriorityChanged: self._prioritized,
            RateChanged: self._limited,
            DutyChanged: self._duty,
            Woken: self._woken,
            StepDone: self._step_done,
            StepFailed: self._step_failed,
            Loaded: self._loaded,
            Fetched: self._fetched,
            Saved: self._saved,
            Written: self._written,
            Measured: self._measured,
            Lowered: self._lowered,
            BudgetChanged: self._budget,
            Flush: self._flush,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; the actions it calls for, in the order they must begin."""
        self._out = []
        if self._turns.deadlines:
            for late in self._turns.expired(now):
                self._end(late, Outcome.EXPIRED)
        self._handlers[type(event)](event, now)
        if self._out or type(event) is not StepDone:  # most events are steps, which change nothing for swap-out
            # Before admission: what a call has just left in CELLS is exported before its cells are given away.
            self._swap.pump_writes(self._out)
            self._swap.pump_saves(now, self._out)
            self._swap.lowering.pump(now, self._out)
        self._run(now)
        return self._out

    # -- what others may know

    @property
    def idle(self) -> bool:
        """Nothing runs, waits, or is being swapped out."""
        return not self._turns.jobs and self._swap.idle and self._switching.reads.idle

    @property
    def waiting(self) -> int:
        return len(self._policy)

    @property
    def pool_used(self) -> int:
        return self._swap.ledger.pool_used

    @property
    def pool_budget(self) -> int:
        return self._swap.ledger.pool_budget

    @property
    def disk_used(self) -> int:
        return self._swap.ledger.disk_used

    @property
    def disk_quota(self) -> int:
        return self._swap.disk.quota

    @property
    def cells_used(self) -> int:
        return sum(c.cells for c in self._contexts.values() if c.seq is not None)

    def stored(self, key: ChunkKey) -> bool:
        """Whether the chunk has a copy in the POOL or on DISK, whoever made it."""
        ledger = self._swap.ledger
        return key in ledger and ledger.tier(key) is not Tier.NONE

    def tiers(self, context_id: ContextId) -> tuple[int, int, int, int]:
        """Tokens of the context whose best copy is in CELLS, POOL, DISK, NONE."""
        context = self._contexts[context_id]
        count = [0, 0, 0, 0]
        for i, key in enumerate(context.keys):
            start = i * CHUNK_TOKENS
            n = min(start + CHUNK_TOKENS, context.n_kv) - start
            resident = max(0, min(n, context.cells - start))
            count[Tier.CELLS] += resident
            count[self._swap.ledger.tier(key)] += n - resident
        return count[0], count[1], count[2], count[3]

    def check(self) -> list[str]:
        """Problems found; empty when the books balance."""
        problems = self._swap.check() + self._swap.disk.check(list(self._contexts.values()))
        refs: dict[ChunkKey, int] = {}
        for context in self._contexts.values():
            for key in context.keys:
                refs[key] = refs.get(key, 0) + 1
            if len(context.keys) != -(-context.n_kv // CHUNK_TOKENS):
                problems.append(f"context {context.id}: {len(context.keys)} chunks for {context.n_kv} tokens")
            if context.cells and context.seq is None:
                problems.append(f"context {context.id}: cells without a sequence")
        for key in refs:
            if self._swap.ledger.chunk(key).refs != refs[key]:
                problems.append(f"chunk {key.hex()}: wrong reference count")
        if len(refs) != len(self._swap.ledger) and self._swap.idle:
            problems.append(f"{len(self._swap.ledger) - len(refs)} chunks belong to no context")
        if self._cells.free < 0:
            problems.append(f"cells overcommitted by {-self._cells.free}")
        problems += [problem for job in self._turns.jobs.values() for problem in job.check()]
        if not self._turns.running and self._cells.reserved:
            problems.append(f"{self._cells.reserved} cells reserved for nobody")
        return problems

    # -- contexts

    def _opened(self, event: ContextOpened, now: float) -> None:
        context = Context(event.context, event.app, [], event.n_kv, idle_since=now - event.idle)
        self._contexts[event.context] = context
        self._swap.own(context, 0, event.keys, self._out)

    def _changed(self, event: ContextChanged, now: float) -> None:
        context = self._contexts[event.context]
        context.committing = False
        self._cells.trim(context, self._cut(context, event.n_kv), self._out)
        context.n_kv = event.n_kv
        self._swap.own(context, event.first, event.keys, self._out)
        self._swap.want_saved(context, self._out)

    @staticmethod
    def _cut(context: Context, n: int) -> int:
        """Cells to keep of ``n`` tokens. What remains of a chunk that came back coded cannot stay:

        it will grow into another chunk, and coding it again would code decoded values.
        """
        index, rest = divmod(n, CHUNK_TOKENS)
        return index * CHUNK_TOKENS if rest and index in context.lossy else n

    def _flush(self, event: Flush, now: float) -> None:
        self._swap.writes.flush()

    def _closed(self, event: ContextClosed, now: float) -> None:
        context = self._contexts.pop(event.context)
        self._cells.trim(context, 0, self._out)
        context.n_kv = 0
        self._swap.own(context, 0, (), self._out)
        self._hand_over(context, self._swap.writes.closed(context.id))
        self._swap.lost(event.gone, self._out)
        self._swap.closed(context)

    def _hand_over(self, context: Context, key: ChunkKey | None) -> None:
        """A chunk that a context took with it before it was written: whoever shares it will write it."""
        if key is not None and key in self._swap.ledger:
            heir = next((c for c in self._contexts.values() if c.app == context.app and key in c.keys), None)
            self._swap.writes.want([(heir.id, key)] if heir else [])

    def _found(self, event: ChunksFound, now: float) -> None:
        stored = {key: (nbytes, notes) for key, nbytes, notes in event.chunks}
        for context in self._contexts.values():
            for key in context.keys:
                if (chunk := stored.pop(key, None)) is not None:
                    self._swap.found(context, key, *chunk)
        if stored:  # nobody contains them
            self._out.append(DropDisk(tuple(stored)))

    def _budget(self, event: BudgetChanged, now: float) -> None:
        if event.pool_bytes is not None:
            self._swap.set_pool_budget(event.pool_bytes, self._out)
        if event.disk_bytes is not None:
            self._swap.set_disk_quota(event.disk_bytes, self._out)

    # -- calls

    def _submitted(self, event: Submitted, now: float) -> None:
        context = self._contexts[event.context]
        job = self._turns.submit(event, context, now)
        self._swap.disk.use(context)
        self._pacing.add(job, event.rate)
        self._steps.abort_for(job, self._out)

    def _prioritized(self, event: PriorityChanged, now: float) -> None:
        job = self._turns.jobs.get(event.request)
        if job is not None:
            job.priority = event.priority
            self._policy.prioritize(event.request, event.priority)
            self._steps.abort_for(job, self._out)

    def _limited(self, event: RateChanged, now: float) -> None:
        self._pacing.limit(event.app, event.rate)

    def _duty(self, event: DutyChanged, now: float) -> None:
        self._pacing.duty = event.duty

    def _woken(self, event: Woken, now: float) -> None:
        self._armed = None

    def _cancel(self, event: CancelRequested, now: float) -> None:
        job = self._turns.jobs.get(event.request)
        if job is not None:  # or it has just ended: the terminal reply is on its way
            self._end(job, Outcome.CANCELLED)

    def _end(self, job: Job, outcome: Outcome) -> None:
        """The call ends early: now, or as soon as the step or the load that runs for it is over."""
        if job.ending is not None:
            return
        job.end_early(outcome)
        self.tally.expired += outcome is Outcome.EXPIRED
        if job.stage is Stage.LOADING:
            self._switching.stop(job, self._out)
        elif not job.in_step:
            self._finish(job, outcome)
        else:
            self._steps.abort_if_useless(self._out)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self._turns.end(job)
        self._switching.reads.release_all(job, self._out)
        self._pacing.remove(job)
        job.context.committing = True
        self._out.append(Finish(job.request, job.context.id, outcome, job.context.cells))

    # -- what runs, and what comes back

    def _run(self, now: float) -> None:
        """Admit, bring back, compute: whatever can begin now does."""
        if len(self._policy):
            self._let_go(self._turns.admit(now, self._out))
        for job in [job for job in self._turns.running.values() if job.stage is Stage.SWITCHING]:
            if self._switching.advance(job, now, self._out):
                self._policy.switched_in(job.request, now - job.admitted)
                if job.context.cells >= job.total:
                    self._finish(job, Outcome.APPENDED)  # there was nothing to compute
        retry = None
        if self._steps.running is None:
            if self._steps.full:
                self._let_go(self._turns.grow(now, self._out))
                self._steps.full = any(job.full for job in self._turns.running.values())
            retry = self._steps.begin(self._turns.running.values(), now, self._out)
        self._wake(retry)

    def _let_go(self, paused: list[Job]) -> None:
        for job in paused:
            self._switching.reads.release_all(job, self._out)

    def _wake(self, retry: float | None) -> None:
        """Ask to be woken when a limit allows the next step, or a deadline passes."""
        deadline = self._turns.next_deadline if self._turns.deadlines else None
        if deadline is None or (retry is not None and retry < deadline):
            deadline = retry
        if deadline is not None and (self._armed is None or deadline < self._armed):
            self._armed = deadline
            self._out.append(WakeAt(deadline))

    def _step_done(self, event: StepDone, now: float) -> None:
        for job, outcome in self._steps.done(event, now):
            self._finish(job, outcome)

    def _step_failed(self, event: StepFailed, now: float) -> None:
        for job, outcome in self._steps.failed(event, now):
            self._finish(job, outcome)

    def _loaded(self, event: Loaded, now: float) -> None:
        job, can_go_on = self._switching.loaded(event, now, self._out)
        if job.ending is not None:
            self._finish(job, job.ending)
        elif not can_go_on:
            self._finish(job, Outcome.ENGINE_FAILED)

    def _fetched(self, event: Fetched, now: float) -> None:
        self._switching.read_on(self._switching.reads.fetched(event, now, self._out), now, self._out)

    def _saved(self, event: Saved, now: float) -> None:
        context = self._contexts.get(owner := self._swap.saved(event, now, self._out))
        if context is None or context.seq is None:
            self._swap.writes.left_cells(owner)  # while its last chunk was being coded

    def _measured(self, event: Measured, now: float) -> None:
        self._swap.measured(event, now, self._out)

    def _lowered(self, event: Lowered, now: float) -> None:
        self._swap.lowered(event, now, self._out)

    def _written(self, event: Written, now: float) -> None:
        self._swap.written(event, self._out)
