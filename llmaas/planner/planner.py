"""The planner: every decision of the service, pure and synchronous.

Law: ``handle(event, now) -> actions``. It reads no clock, file, socket or model, so the same code runs the live
service and the replay of a trace. Work per event does not grow with idle contexts.
"""

from __future__ import annotations

import itertools

from llmaas.errors import assert_never
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.actions import Action, WakeAt
from llmaas.planner.admission import Admission
from llmaas.planner.batching import Batching
from llmaas.planner.bit_budget import BitBudget
from llmaas.planner.calls import Calls
from llmaas.planner.cell_table import CellTable
from llmaas.planner.chunk_worth import ChunkUser, ChunkWorth
from llmaas.planner.context_table import ContextTable
from llmaas.planner.cost_model import LearnedCosts, SwitchCosts
from llmaas.planner.disk_quota import DiskQuota
from llmaas.planner.events import (
    AppDiskChanged,
    BudgetChanged,
    CancelRequested,
    ChunksCame,
    ChunksFound,
    ContextChanged,
    ContextClosed,
    ContextOpened,
    ContextsExpected,
    DutyChanged,
    Event,
    Fetched,
    Flush,
    LimitEvent,
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
from llmaas.planner.last_chunks import LastChunks
from llmaas.planner.lowering import Lowering
from llmaas.planner.pacing import Pacing
from llmaas.planner.pool_books import PoolBooks
from llmaas.planner.pool_room import PoolRoom
from llmaas.planner.read_ahead import ReadAhead
from llmaas.planner.saving import SaveQueue
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.swap_out import SwapOut
from llmaas.planner.switching import Switching
from llmaas.planner.tally import Tally
from llmaas.planner.warm_pool import WarmPool
from llmaas.planner.write_back import WriteBack
from llmaas.policies.bit_price import BitCurve
from llmaas.policies.eviction import EVICTION, EvictionPolicy
from llmaas.policies.scheduling import SCHEDULING
from llmaas.policies.split import SPLIT
from llmaas.policies.wear import WEAR
from llmaas.records import AppId, ChunkKey, ContextId, Tier


class Planner:
    """Joins the parts that decide, and calls them in order.

    >>> from llmaas.records import AppId, Geometry, RequestId
    >>> geometry = Geometry(n_layer=2, k_dim=64, v_dim=64, head_dim_k=32, head_dim_v=32)
    >>> planner = Planner(PlannerSettings(n_cells=256, n_seqs=2, ctx_limit=256, geometry=geometry))
    >>> planner.handle(ContextOpened(ContextId("c"), AppId("0/mail")), now=0.0)
    []
    >>> for action in planner.handle(Submitted(RequestId(7), ContextId("c"), n_total=10, max_new=2), now=0.1):
    ...     print(type(action).__name__)
    Admitted
    Switched
    RunStep
    """

    def __init__(self, settings: PlannerSettings, *, eviction: EvictionPolicy | None = None) -> None:
        """``eviction``: a policy in place of the one that the settings name, for experiments."""
        self.settings = settings
        self.tally = tally = Tally()
        next_id = itertools.count(1).__next__
        encoded_size = Codec(settings.geometry, kernels=NUMPY).encoded_size
        self._costs = costs = SwitchCosts()

        self._ledger = ledger = Ledger(settings.pool_bytes)
        self._bits = bits = BitBudget(settings, encoded_size)
        wear = WEAR[settings.wear](settings.wear_budget, settings.disk_bytes)
        self._disk = disk = DiskQuota(settings.disk_bytes, ledger, wear, tally, bits.forget)
        users: dict[ChunkKey, ChunkUser] = {}
        last, always_read = LastChunks(ledger), settings.split == "load_first"
        states = settings.state is not None
        worth = ChunkWorth(ledger, costs, wear, users, disk.calls, always_read=always_read, states=states)
        writes = WriteBack(settings, ledger, disk, bits, wear, worth, last, tally, next_id)
        policy = EVICTION[settings.eviction]() if eviction is None else eviction
        room = PoolRoom(ledger, policy, writes, disk, bits, last, users, tally)
        self._books = books = PoolBooks(ledger, room, writes, disk, bits, tally)
        saves = SaveQueue(settings, ledger, books, bits, writes, encoded_size, tally, next_id)
        lowering = Lowering(ledger, books, bits, wear, writes, tally, next_id)
        self._swap_out = SwapOut(settings, ledger, room, books, saves, writes, lowering, wear)

        self._cells = cells = CellTable(settings.n_cells, settings.n_seqs, cuttable=settings.swappable)
        self._contexts = ContextTable(ledger, books, cells, self._swap_out, states=states)
        reads = ReadAhead(ledger, books, SPLIT[settings.split](), costs, next_id)
        self._warm_pool = WarmPool(ledger, room, books, next_id)
        self._switching = Switching(settings, ledger, books, cells, reads, costs, tally, next_id)
        scheduling = SCHEDULING[settings.scheduling](settings.quantum, settings.ageing_s)
        self._admission = Admission(scheduling, cells, room, self._swap_out, self._switching, settings, tally)
        self._pacing = Pacing(settings)
        batching = Batching(scheduling, costs, self._pacing, settings, tally, next_id)
        self._calls = Calls(self._contexts, self._admission, self._switching, batching, self._pacing, tally)
        self._alarm: float | None = None
        """When it asked to be woken."""
        self._tiers: dict[tuple[ContextId, int | None], tuple[int, int, int, int]] = {}
        """What ``tiers`` has found since the last event."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; the actions it calls for, in the order they must begin."""
        out: list[Action] = []
        self._tiers.clear()
        self._calls.expire(now, out)
        self._take(event, now, out)
        if out or type(event) is not StepDone:  # most events are steps, which change nothing for swap-out
            # Before admission: what a call has just left in CELLS is exported before its cells are given away.
            self._swap_out.pump(now, out)
        self._calls.admit(now, out)
        self._calls.bring_back(now, out)
        retry = self._calls.compute(now, out)
        if not self._admission.jobs:
            self._warm_pool.pump(out)
        self._set_alarm(retry, out)
        return out

    def _take(self, event: Event, now: float, out: list[Action]) -> None:
        """What has happened, without what follows from it; the most frequent events first."""
        match event:
            case StepDone() | StepFailed():
                self._calls.step_ended(event, now, out)
            case Saved() | Written() | Measured() | Lowered():
                self._swap_out.handle(event, now, out)
            case ContextChanged() | ContextOpened() | ContextClosed() | ChunksFound() | ChunksCame():
                self._contexts.handle(event, now, out)
            case Loaded() | Fetched():
                if not (isinstance(event, Fetched) and self._warm_pool.fetched(event, now, out)):
                    self._calls.chunks_came(event, now, out)
            case Submitted() | CancelRequested() | PriorityChanged():
                self._calls.handle(event, now, out)
            case Woken():
                self._alarm = None
            case RateChanged() | DutyChanged() | BudgetChanged() | AppDiskChanged():
                self._limit(event, out)
            case ContextsExpected(contexts=contexts):
                if self.settings.state is None:
                    self._warm_pool.expect(self._contexts.known(contexts))
            case Flush():
                self._warm_pool.stop()
                self._swap_out.flush(self._contexts.last_chunks())
            case _:
                assert_never(event)

    def _limit(self, event: LimitEvent, out: list[Action]) -> None:
        match event:
            case RateChanged(app=app, rate=rate):
                self._pacing.limit(app, rate)
            case DutyChanged(duty=duty):
                self._pacing.duty = duty
            case BudgetChanged():
                self._books.set_budgets(event, out)
            case AppDiskChanged():
                self._books.set_app_disk(event, out)
            case _:
                assert_never(event)

    def _set_alarm(self, retry: float | None, out: list[Action]) -> None:
        """Ask to be woken when a limit allows the next step, or a deadline passes."""
        when = self._calls.next_deadline
        if when is None or (retry is not None and retry < when):
            when = retry
        if when is not None and (self._alarm is None or when < self._alarm):
            self._alarm = when
            out.append(WakeAt(when))

    # -- what others may know

    @property
    def idle(self) -> bool:
        """Nothing runs, waits, or is being swapped out."""
        return not self._admission.jobs and self._swap_out.idle and self._switching.idle and self._warm_pool.idle

    @property
    def first_token_awaited(self) -> bool:
        """Whether a call waits to be admitted, for its context, or for its prompt."""
        return self._admission.first_token_awaited

    @property
    def saves_may_rest(self) -> bool:
        """Whether a call waits for its first token, and none for chunks that are being saved, or for their cells."""
        return self._admission.saves_may_rest

    @property
    def learned_costs(self) -> LearnedCosts:
        """Seconds that computing, reading and placing take here, by what was observed so far."""
        return self._costs.learned

    def n_begun(self, context: ContextId) -> int:
        """Up to which token of the context a piece of it is being computed that had no copy; 0 if none is."""
        return self._calls.n_begun(context)

    def prefill_s(self, n_tokens: int) -> float:
        """Seconds that computing the first tokens of a context takes here."""
        return self._costs.compute(0, n_tokens)

    @property
    def waiting(self) -> int:
        """How many calls wait to be admitted."""
        return self._admission.waiting

    @property
    def pool_used(self) -> int:
        return self._ledger.pool_used

    @property
    def pool_budget(self) -> int:
        return self._ledger.pool_budget

    @property
    def disk_used(self) -> int:
        return self._ledger.disk_used

    def disk_used_of(self, app: AppId) -> int:
        """Bytes on DISK of an app's chunks."""
        return self._ledger.disk_used_of(app)

    def disk_room(self, app: AppId) -> int:
        """Bytes that chunks of the app can take on DISK without any other chunk having to go."""
        return self._disk.room(app)

    @property
    def disk_quota(self) -> int:
        return self._disk.quota

    @property
    def bit_curve(self) -> BitCurve | None:
        """What more bytes would do for the chunks; None if they are not coded by that."""
        return self._bits.curve

    @property
    def cells_used(self) -> int:
        return self._contexts.cells_used

    def stored(self, key: ChunkKey) -> bool:
        """Whether the chunk has a copy in the POOL or on DISK, whoever made it."""
        return key in self._ledger and self._ledger.tier(key) is not Tier.NONE

    def tiers(self, context: ContextId, n_tokens: int | None = None) -> tuple[int, int, int, int]:
        """Of the context's tokens, or its first ``n_tokens``: those whose best copy is in CELLS, POOL, DISK, NONE.

        Looks at each chunk the first time only: clients may list contexts thousands of times between two events.
        """
        found = self._tiers.get((context, n_tokens))
        if found is None:
            found = self._tiers[context, n_tokens] = self._contexts.tiers(context, n_tokens)
        return found

    def check(self) -> list[str]:
        """Problems found; empty when the books balance."""
        problems = self._contexts.check(at_rest=self._swap_out.idle and self._switching.idle)
        return problems + self._calls.check() + self._cells.check(nobody_runs=not self._admission.running)
