"""Jobs: what the planner knows of a call that is on its way.

Law: a job changes its stage along ``TRANSITIONS`` only; any other move raises PolicyBug and changes nothing::

              ADMIT               ARRIVE               PREFILLED
    QUEUED ──────────▶ SWITCHING ──────────▶ PREFILLING ──────────▶ DECODING
                       │ ▲   ▲ │
                  LOAD │ │   │ │ COMPUTE
                       ▼ │   │ ▼
         LOADED: LOADING ┘   └ RECOMPUTING :COMPUTED

    PAUSE: SWITCHING, RECOMPUTING, PREFILLING, DECODING ──▶ QUEUED
    END:   every stage but LOADING and ENDED            ──▶ ENDED

A job that computes (RECOMPUTING, PREFILLING, DECODING) may take part in an engine step. Until that step is over
(``leave_step``) it makes no other move. ``ending`` is set at most once: the job then ends as soon as neither a step nor
a load runs for it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from llmaas.errors import PolicyBug
from llmaas.planner.actions import Outcome
from llmaas.planner.context import Context
from llmaas.records import ChunkKey, RequestId


class Stage(enum.Enum):
    """What a job is doing. All stages but QUEUED and ENDED hold a sequence and a reservation of cells."""

    QUEUED = "queued"
    """It waits for its admission."""
    SWITCHING = "switching"
    """Its context is being brought back; the next piece is still to be chosen."""
    LOADING = "loading"
    """A load brings chunks into its cells."""
    RECOMPUTING = "recomputing"
    """Tokens that have lost their chunks are computed again."""
    PREFILLING = "prefilling"
    """The context is back; its new tokens are computed."""
    DECODING = "decoding"
    """It generates."""
    ENDED = "ended"
    __hash__ = object.__hash__  # members are single; enum's own is Python code, and is called for every move


class JobMove(enum.Enum):
    """Ways from one stage to the next."""

    ADMIT = "be admitted"
    LOAD = "begin a load"
    LOADED = "end a load"
    COMPUTE = "begin to recompute"
    COMPUTED = "end recomputing"
    ARRIVE = "arrive in CELLS"
    PREFILLED = "end its prefill"
    PAUSE = "be paused"
    END = "end"
    __hash__ = object.__hash__


TRANSITIONS: dict[tuple[Stage, JobMove], Stage] = {
    (Stage.QUEUED, JobMove.ADMIT): Stage.SWITCHING,
    (Stage.QUEUED, JobMove.END): Stage.ENDED,
    (Stage.SWITCHING, JobMove.LOAD): Stage.LOADING,
    (Stage.SWITCHING, JobMove.COMPUTE): Stage.RECOMPUTING,
    (Stage.SWITCHING, JobMove.ARRIVE): Stage.PREFILLING,
    (Stage.SWITCHING, JobMove.PAUSE): Stage.QUEUED,
    (Stage.SWITCHING, JobMove.END): Stage.ENDED,
    (Stage.LOADING, JobMove.LOADED): Stage.SWITCHING,
    (Stage.RECOMPUTING, JobMove.COMPUTED): Stage.SWITCHING,
    (Stage.RECOMPUTING, JobMove.PAUSE): Stage.QUEUED,
    (Stage.RECOMPUTING, JobMove.END): Stage.ENDED,
    (Stage.PREFILLING, JobMove.PREFILLED): Stage.DECODING,
    (Stage.PREFILLING, JobMove.PAUSE): Stage.QUEUED,
    (Stage.PREFILLING, JobMove.END): Stage.ENDED,
    (Stage.DECODING, JobMove.PAUSE): Stage.QUEUED,
    (Stage.DECODING, JobMove.END): Stage.ENDED,
}
COMPUTING = (Stage.DECODING, Stage.PREFILLING, Stage.RECOMPUTING)
"""Stages in which a job may take part in an engine step; the most frequent first."""


@dataclass(slots=True, eq=False)
class Job:
    """A call on its way. Fields may be read by all parts of the planner; ``stage``, ``in_step``, ``cautious`` and
    ``ending`` are written by the methods below only.
    """

    request: RequestId
    context: Context
    n_total: int
    """Tokens of the context with the call's prompt."""
    max_new: int
    """Tokens to generate at most; 0 for an append."""
    priority: int
    adapter: str = ""
    adapter_bytes: int = 0
    spare_last: bool = False
    """Its sequence cannot be cut."""
    stage: Stage = Stage.QUEUED
    admitted: float = 0.0
    """When it was last admitted."""
    reserve: int = 0
    """Cells that it may fill before it must ask for more."""
    in_step: bool = False
    last_step: int = 0
    """Number of the last step that it took part in."""
    cautious: bool = False
    """One long step was aborted; from now on it gets short ones."""
    ending: Outcome | None = None
    """It ends with this outcome as soon as nothing runs for it."""
    produced: int = 0
    """Tokens generated so far."""
    until: int = 0
    """Where the present recomputation ends, in tokens."""
    from_cells: int = 0
    from_pool: int = 0
    from_disk: int = 0
    recomputed: int = 0
    read: set[ChunkKey] = field(default_factory=set)
    """Chunks that were read from DISK before they could be loaded, or still are being read."""
    held: set[ChunkKey] = field(default_factory=set)
    """Those of ``read`` that are in the POOL, pinned for this job."""

    @property
    def total(self) -> int:
        """Tokens that there are now; the last one that was generated is not yet in CELLS."""
        return self.n_total + self.produced

    @property
    def full(self) -> bool:
        """It needs more cells for its next token."""
        return self.context.cells >= self.reserve and self.stage is Stage.DECODING

    @property
    def covered(self) -> int:
        """Tokens of the context that chunks exist for, as far as the call needs them."""
        return min(self.context.n_kv, self.total)

    @property
    def goal(self) -> int:
        """Tokens that may be in CELLS before the prefill: generation needs the last one's logits."""
        return self.total - 1 if self.max_new else self.total

    @property
    def prefill_end(self) -> int:
        """Where the prefill ends, in tokens. A sequence that cannot be cut must not be longer than what an answer would
        begin with: so an append leaves the last token to the call that follows."""
        return self.total - 1 if self.spare_last and not self.max_new else self.total

    @property
    def in_cells(self) -> bool:
        """It has a sequence and a reservation of cells."""
        return self.stage is not Stage.QUEUED and self.stage is not Stage.ENDED

    # -- moves

    def admit(self, reserve: int, now: float) -> None:
        """Its context gets a sequence and may fill ``reserve`` cells; what is there already counts as from CELLS."""
        context = self.context
        self._require(self.total <= reserve and context.cells <= reserve, f"cannot begin with {reserve} cells")
        self._move(JobMove.ADMIT)
        self.reserve, self.admitted = reserve, now
        self.from_cells = min(context.cells, context.n_kv)
        self.from_pool = self.from_disk = self.recomputed = 0

    def begin_load(self) -> None:
        self._move(JobMove.LOAD)

    def end_load(self) -> None:
        self._move(JobMove.LOADED)

    def begin_recompute(self, until: int) -> None:
        """Tokens up to ``until`` are computed again."""
        self._require(self.context.cells < until <= self.covered, f"cannot recompute up to {until}")
        self._move(JobMove.COMPUTE)
        self.until = until

    def end_recompute(self) -> None:
        self._move(JobMove.COMPUTED)

    def arrive(self) -> None:
        """All of the context that it needs is in CELLS, and no more."""
        self._require(self.context.cells <= self.goal, f"has more than {self.goal} tokens in CELLS")
        self._move(JobMove.ARRIVE)

    def end_prefill(self) -> None:
        self._move(JobMove.PREFILLED)

    def pause(self) -> None:
        """It leaves its cells to others, and waits again."""
        self._move(JobMove.PAUSE)

    def end(self) -> None:
        """It has its outcome."""
        self._move(JobMove.END)

    def join_step(self, step: int, stop: int) -> None:
        """It takes part in the engine step of this number, up to token ``stop``."""
        if self.in_step or self.stage not in COMPUTING or not self.context.cells < stop <= self.reserve:
            raise self._bug(f"compute tokens {self.context.cells} .. {stop} of {self.reserve} in a step")
        self.in_step, self.last_step = True, step

    def leave_step(self, *, aborted: bool = False) -> None:
        """The step is over. ``aborted``: it was one, and too long."""
        if not self.in_step:
            raise self._bug("leave a step")
        self.in_step = False
        self.cautious = self.cautious or aborted

    def end_early(self, outcome: Outcome) -> None:
        """It is to end with ``outcome`` as soon as nothing runs for it."""
        if self.ending is not None or self.stage is Stage.ENDED:
            raise self._bug(f"be asked to end as {outcome.value}")
        self.ending = outcome

    def check(self) -> list[str]:
        """Invariants that do not hold; empty when all is well."""
        context, problems = self.context, []
        if self.in_cells and not (context.running and context.seq is not None and context.cells <= self.reserve):
            problems.append(f"has {context.cells} cells of {self.reserve} in sequence {context.seq}")
        if self.in_step and self.stage not in COMPUTING:
            problems.append("is in a step")
        if not 0 <= self.covered <= self.total or self.produced > self.max_new:
            problems.append(f"has {self.covered} tokens covered of {self.total}, {self.produced} generated")
        if self.stage is Stage.RECOMPUTING and not context.cells < self.until <= min(self.covered, self.goal):
            problems.append(f"recomputes from {context.cells} to {self.until}")
        if self.stage is Stage.PREFILLING and not context.cells < self.prefill_end:
            problems.append(f"prefills from {context.cells} to {self.total}")
        if self.stage is Stage.DECODING and context.cells != self.total - 1:
            problems.append(f"decodes with {context.cells} cells of {self.total} tokens")
        if not self.held <= self.read:
            problems.append("holds chunks that it did not read")
        return [f"job {self.request}, {self.stage.value}: it {problem}" for problem in problems]

    def _move(self, move: JobMove) -> None:
        stage = TRANSITIONS.get((self.stage, move))
        if stage is None or self.in_step:
            raise self._bug(move.value)
        self.stage = stage

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise PolicyBug(f"job {self.request} {otherwise}: {self.context.cells} cells, {self.total} tokens")

    def _bug(self, what: str) -> PolicyBug:
        step = " in a step" if self.in_step else ""
        return PolicyBug(f"job {self.request}: one that is {self.stage.value}{step} cannot {what}")
