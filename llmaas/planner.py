"""F5. The planner: every decision of the service, pure and synchronous.

Law: ``handle(event, now) -> actions``. It reads no clock, file, socket or model, so the same code runs the live
service and the replay of a trace. Work per event does not grow with idle contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmaas.actions import Action, Admitted, DropDisk, Finish, Outcome, RunStep
from llmaas.errors import PolicyBug
from llmaas.events import (
    BudgetChanged,
    CancelRequested,
    ChunksFound,
    ContextChanged,
    ContextClosed,
    ContextOpened,
    Event,
    Fetched,
    Flush,
    Loaded,
    Lowered,
    Measured,
    Saved,
    StepDone,
    StepFailed,
    Submitted,
    Written,
)
from llmaas.planner_state import Cells, Context, Job, PlannerSettings, Stage, Tally
from llmaas.planner_steps import burst, compose, stepped
from llmaas.planner_swap import SwapBooks
from llmaas.planner_switch import Switching
from llmaas.policies.eviction import DEFAULT_EVICTION, EVICTION, EvictionPolicy
from llmaas.policies.scheduling import SCHEDULING
from llmaas.policies.split import SPLIT
from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextId, RequestId, Tier


class Planner:
    """Holds the ledger and calls the policies (DESIGN: one decision loop, two worlds)."""

    def __init__(
        self,
        settings: PlannerSettings,
        *,
        eviction: str | EvictionPolicy = DEFAULT_EVICTION,
        scheduling: str = "fifo",
    ) -> None:
        self.settings = settings
        self.tally = Tally()
        policy = EVICTION[eviction]() if isinstance(eviction, str) else eviction
        self._swap = SwapBooks(settings, policy, self.tally)
        self._queue = SCHEDULING[scheduling]()
        self._cells = Cells(settings.n_cells, settings.n_seqs, cuttable=settings.swappable)
        self._switching = Switching(self._swap, self._cells, SPLIT[settings.split](), settings, self.tally)
        self._contexts: dict[ContextId, Context] = {}
        self._jobs: dict[RequestId, Job] = {}
        self._running: dict[RequestId, Job] = {}
        self._step: RunStep | None = None
        self._step_began = 0.0
        self._out: list[Action] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            ContextOpened: self._opened,
            ContextChanged: self._changed,
            ContextClosed: self._closed,
            ChunksFound: self._found,
            Submitted: self._submitted,
            CancelRequested: self._cancel,
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
        self._handlers[type(event)](event, now)
        # Swap-out before admission: what a call has just left in CELLS is exported before its cells are given away.
        self._swap.pump_writes(self._out)
        self._swap.pump_saves(now, self._out)
        self._swap.lowering.pump(now, self._out)
        self._admit(now)
        for job in list(self._running.values()):
            if job.stage is Stage.SWITCHING:
                back = self._switching.advance(job, now, self._out)
                if back and job.context.cells >= job.n_total:
                    self._finish(job, Outcome.APPENDED)  # there was nothing to compute
        self._compose_step(now)
        return self._out

    # -- what others may know

    @property
    def idle(self) -> bool:
        """Nothing runs, waits, or is being swapped out."""
        return not self._jobs and self._swap.idle and self._switching.reads.idle

    @property
    def waiting(self) -> int:
        return len(self._queue)

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
        if not self._running and self._cells.reserved:
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

    # -- admission

    def _submitted(self, event: Submitted, now: float) -> None:
        context = self._contexts[event.context]
        if event.n_total > self.settings.ctx_limit:
            raise PolicyBug(f"{event.n_total} tokens can never be in {self.settings.ctx_limit} cells")
        self._swap.disk.use(context)
        reserve = min(event.n_total + event.max_new, self.settings.ctx_limit)
        job = Job(event.request, context, event.n_total, event.max_new, reserve)
        self._jobs[event.request] = job
        self._queue.add(event.request, event.priority, now)

    def _admit(self, now: float) -> None:
        while len(self._running) < self.settings.max_running:
            request = self._queue.head(now)
            if request is None or not self._make_cells(self._jobs[request], now):
                return
            job = self._jobs[request]
            self._queue.remove(request)
            self._cells.start(job.context, job.reserve)
            self._running[request] = job
            job.stage = Stage.SWITCHING
            job.from_cells = min(job.context.cells, job.context.n_kv)
            if job.from_cells < job.context.n_kv:
                self._swap.returned(job.context, now)
            assert job.context.seq is not None
            self._out.append(Admitted(request, job.context.seq))

    def _make_cells(self, job: Job, now: float) -> bool:
        need = job.reserve - job.context.cells if job.context.id in self._cells.idle else job.reserve
        victims = self._cells.victims(need, job.context)
        if victims is None and self._swap.hurry():
            self._swap.pump_saves(now, self._out)
            victims = self._cells.victims(need, job.context)
        if victims is None:
            return False
        for context in victims:
            self._swap.touch(context.keys, now)  # used until now, only not from the POOL
            self._cells.trim(context, 0, self._out)
            self._swap.writes.left_cells(context.id)
            self.tally.contexts_left_cells += 1
        return True

    def _cancel(self, event: CancelRequested, now: float) -> None:
        job = self._jobs.get(event.request)
        if job is None:
            return  # it has just ended: the terminal reply is on its way
        job.cancelled = True
        if job.stage is Stage.QUEUED:
            self._queue.remove(job.request)
            self._finish(job, Outcome.CANCELLED)
        elif job.stage is Stage.LOADING:
            self._switching.stop(job, self._out)
        elif not job.in_step:
            self._finish(job, Outcome.CANCELLED)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        del self._jobs[job.request]
        job.ended = True
        self._switching.reads.release_all(job, self._out)
        if self._running.pop(job.request, None) is not None:
            self._cells.stop(job.context, job.reserve)
        job.context.committing = True
        self._out.append(Finish(job.request, job.context.id, outcome, job.context.cells))

    # -- what runs comes back

    def _compose_step(self, now: float) -> None:
        if self._step is None and (items := compose(self._running.values(), self.settings)):
            self._step = RunStep(self._swap.next_id(), items, burst(items, self._running, self.settings))
            self._step_began = now
            self._out.append(self._step)

    def _step_done(self, event: StepDone, now: float) -> None:
        step = self._end_step(event.step)
        self._switching.costs.stepped(step, now - self._step_began)
        for item, drawn in zip(step.items, event.drawn, strict=True):
            job = self._running[item.request]
            outcome = stepped(job, item, drawn, event.steps, self.settings, self.tally)
            if outcome is not None:
                self._finish(job, outcome)

    def _step_failed(self, event: StepFailed, now: float) -> None:
        for item in self._end_step(event.step).items:
            job = self._running[item.request]
            job.in_step = False
            self._finish(job, Outcome.CANCELLED if job.cancelled else Outcome.ENGINE_FAILED)

    def _end_step(self, number: int) -> RunStep:
        step, self._step = self._step, None
        if step is None or step.step != number:
            raise PolicyBug(f"step {number} ended but was not running")
        return step

    def _loaded(self, event: Loaded, now: float) -> None:
        job, can_go_on = self._switching.loaded(event, now, self._out)
        if job.cancelled:
            self._finish(job, Outcome.CANCELLED)
        elif not can_go_on:
            self._finish(job, Outcome.ENGINE_FAILED)

    def _fetched(self, event: Fetched, now: float) -> None:
        self._switching.read_on(self._switching.reads.fetched(event, now, self._out), now, self._out)

    def _saved(self, event: Saved, now: float) -> None:
        context = self._contexts.get(owner := self._swap.saved(event.save, event.nbytes, now, self._out))
        if context is None or context.seq is None:
            self._swap.writes.left_cells(owner)  # while its last chunk was being coded

    def _measured(self, event: Measured, now: float) -> None:
        self._swap.measured(event, now, self._out)

    def _lowered(self, event: Lowered, now: float) -> None:
        self._swap.lowered(event, now, self._out)

    def _written(self, event: Written, now: float) -> None:
        self._swap.written(event, self._out)
