"""What the planner knows of contexts, jobs and cells.

Law: plain bookkeeping, no decisions. Everything here is private to the planner; others see ``Tally`` and copies.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypedDict

from llmaas.errors import PolicyBug
from llmaas.planner.actions import Action, DropCells, Outcome
from llmaas.policies.llms_bits import SPENDING
from llmaas.policies.scheduling import DEFAULT_SCHEDULING, SCHEDULING
from llmaas.policies.split import SPLIT
from llmaas.records import CHUNK_TOKENS, NO_QUOTA, AppId, ChunkKey, ContextId, Geometry, Precision, RequestId


class BitSettings(TypedDict, total=False):
    """Some fields of PlannerSettings."""

    spending: str
    precision: Precision
    bits: float


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """Fixed facts and choices: plain values, so that a recorded run can be planned again."""

    n_cells: int
    n_seqs: int
    pool_bytes: int
    ctx_limit: int
    """Tokens of the longest context: the model's limit, or all the cells."""
    geometry: Geometry
    disk_bytes: int = NO_QUOTA
    """What chunks on DISK may take together."""
    swappable: bool = True
    """False for models without per-token KV rows: their contexts are always recomputed."""
    precision: Precision = Precision(4, 4)
    spending: str = "uniform"
    """How bits are shared out, one of ``policies.llms_bits.SPENDING``; ``precision`` is what "uniform" gives all."""
    bits: float = 4.0
    """Bytes that coded chunks may take together, in bits per value of K and V, scales and headers included."""
    split: str = "balanced"
    """How it is decided what is computed and what read of a context that comes back: of ``policies.split.SPLIT``."""
    max_batch: int = 512
    prefill_slice: int = 256
    """Tokens of a prompt in one step at most; fewer, where others would wait too long for the step's end."""
    step_target: float = 0.1
    """Seconds that a step should take at most if somebody waits for its end."""
    max_running: int = 8
    scheduling: str = DEFAULT_SCHEDULING
    """Whose turn it is, one of ``policies.scheduling.SCHEDULING``."""
    quantum: int = 64
    """Steps that a call may take before others of its priority get its place in CELLS, if they need it."""
    ageing_s: float = 5.0
    """Seconds without service that make a call more urgent by one."""
    rate: float | None = None
    """Tokens per second that all calls together may generate."""
    app_rate: float | None = None
    """The same for each app that has no limit of its own."""
    adapter_bytes: int = NO_QUOTA
    """What LoRA adapters of the calls in CELLS may take of memory together."""
    burst: int = 32
    """Steps that running answers may take between two looks of the planner, if nothing else happens."""
    save_batch: int = 8
    """Chunks exported at once: bounds the f16 bytes in flight and how long a step can be held up."""
    write_batch: int = 64

    @property
    def measure(self) -> bool:
        """Whether what chunks tolerate is measured before they are coded."""
        return self.spending != "uniform" and self.swappable

    def __post_init__(self) -> None:
        if not 0 < self.ctx_limit <= self.n_cells:
            raise ValueError(f"ctx_limit must be in 1 .. n_cells={self.n_cells}, not {self.ctx_limit}")
        if self.spending not in SPENDING:
            raise ValueError(f"spending is one of {', '.join(SPENDING)}, not {self.spending}")
        if self.scheduling not in SCHEDULING:
            raise ValueError(f"scheduling is one of {', '.join(SCHEDULING)}, not {self.scheduling}")
        if self.quantum < 1 or self.ageing_s <= 0 or self.step_target <= 0:
            raise ValueError("quantum must be at least 1, ageing_s and step_target above 0")
        if self.split not in SPLIT:
            raise ValueError(f"split is one of {', '.join(SPLIT)}, not {self.split}")


def bit_settings(bits: float | Precision) -> BitSettings:
    """Settings for a mean number of bits, spent where they matter most, or for the same precision everywhere."""
    if isinstance(bits, Precision):
        return {"spending": "uniform", "precision": bits}
    return {"spending": "tolerance", "bits": bits}


class Stage(enum.Enum):
    QUEUED = "queued"
    SWITCHING = "switching"
    LOADING = "loading"
    RECOMPUTING = "recomputing"
    PREFILLING = "prefilling"
    DECODING = "decoding"


@dataclass(slots=True, eq=False)
class Context:
    """``keys`` cover the first ``n_kv`` tokens; the first ``cells`` tokens are in sequence ``seq``."""

    id: ContextId
    app: AppId
    keys: list[ChunkKey]
    n_kv: int
    idle_since: float = 0.0
    """When it was found or made, less how long it had been idle then."""
    seq: int | None = None
    cells: int = 0
    lossy: set[int] = field(default_factory=set)
    """Indices of chunks whose cells came from a coded copy: they may not be coded again."""
    running: bool = False
    wanted: bool = False
    """A call waits for its turn on it."""
    committing: bool = False
    """A call has finished or paused but its ContextChanged is still to come."""
    unsaved: int = 0
    """Saves that wait for their turn; evicting the cells now would lose them."""
    used: int = 0
    """Number of its last use, counted over all contexts; with ``cooled``, the disk quota's."""
    cooled: int = 0
    """So many of its last chunks it no longer keeps on DISK."""


@dataclass(slots=True, eq=False)
class Job:
    """A call on its way. ``reserve``: the cells that it may fill before it must ask for more."""

    request: RequestId
    context: Context
    n_total: int
    max_new: int
    priority: int
    deadline: float | None = None
    admitted: float = 0.0
    adapter: str = ""
    adapter_bytes: int = 0
    reserve: int = 0
    stage: Stage = Stage.QUEUED
    in_step: bool = False
    last_step: int = 0
    """Number of the last step that it took part in."""
    cautious: bool = False
    """A long step of it was aborted once; all others are short."""
    ending: Outcome | None = None
    """It ends like this as soon as nothing runs for it."""
    produced: int = 0
    until: int = 0
    from_cells: int = 0
    from_pool: int = 0
    from_disk: int = 0
    recomputed: int = 0
    read: set[ChunkKey] = field(default_factory=set)
    """Chunks that were asked of the DISK ahead of being loaded; ``held`` are those that came and are pinned for it."""
    held: set[ChunkKey] = field(default_factory=set)
    ended: bool = False

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


@dataclass(slots=True)
class Tally:
    """Counts since start. Tokens, chunks or bytes as named."""

    switches: int = 0
    tokens_from_cells: int = 0
    tokens_from_pool: int = 0
    tokens_from_disk: int = 0
    tokens_recomputed: int = 0
    tokens_prefilled: int = 0
    tokens_generated: int = 0
    contexts_left_cells: int = 0
    chunks_evicted: int = 0
    chunks_saved: int = 0
    chunks_unsaved: int = 0
    chunks_written: int = 0
    bytes_written: int = 0
    writes_failed: int = 0
    writes_refused: int = 0
    """Chunks that the disk quota had no room for."""
    chunks_left_disk: int = 0
    """Chunks that were dropped from DISK to make room there."""
    chunks_damaged: int = 0
    chunks_lowered: int = 0
    pauses: int = 0
    """Calls that left CELLS to others before they had ended."""
    steps_aborted: int = 0
    expired: int = 0


class Cells:
    """Who is in CELLS. Running contexts hold a reservation, idle ones what they have."""

    def __init__(self, n_cells: int, n_seqs: int, *, cuttable: bool = True) -> None:
        """``cuttable`` False: the model keeps one state per sequence, which leaves as a whole or not at all."""
        self.n_cells = n_cells
        self._cuttable = cuttable
        self.reserved = 0
        self.idle: OrderedDict[ContextId, Context] = OrderedDict()
        """Resident and not running, least recently run first."""
        self.idle_cells = 0
        self._seqs = list(range(n_seqs - 1, -1, -1))

    @property
    def free(self) -> int:
        return self.n_cells - self.reserved - self.idle_cells

    def start(self, context: Context, reserve: int) -> None:
        """The context runs now; it keeps or gets a sequence."""
        if self.idle.pop(context.id, None) is not None:
            self.idle_cells -= context.cells
        if context.seq is None:
            context.seq = self._seqs.pop()
        context.running = True
        self.reserved += reserve
        if self.free < 0:
            raise PolicyBug(f"cells overcommitted: {self.reserved} reserved, {self.idle_cells} idle")

    def stop(self, context: Context, reserve: int) -> None:
        """The context no longer runs; what it has in CELLS stays until someone needs the room."""
        self.reserved -= reserve
        context.running = False
        self.idle[context.id] = context
        self.idle_cells += context.cells
        self._release_if_empty(context)

    def grow(self, more: int) -> None:
        """A running context may fill so many more cells."""
        self.reserved += more
        if self.free < 0:
            raise PolicyBug(f"cells overcommitted: {self.reserved} reserved, {self.idle_cells} idle")

    def short(self, need: int, keep: Context) -> int:
        """Cells that are lacking for ``need`` more even when every idle context has left."""
        mine = keep.cells if keep.id in self.idle else 0
        return need - self.free - (self.idle_cells - mine)

    def seq_for(self, context: Context) -> bool:
        """Whether there is a sequence for it, or will be when idle contexts have left."""
        return context.seq is not None or bool(self._seqs) or bool(self.idle)

    def trim(self, context: Context, n: int, out: list[Action]) -> None:
        """Keep at most the first ``n`` tokens of the context in CELLS."""
        if context.seq is None or n >= context.cells:
            return
        n = n if self._cuttable else 0
        out.append(DropCells(context.seq, n))
        if context.id in self.idle:
            self.idle_cells -= context.cells - n
        context.cells = n
        context.lossy = {i for i in context.lossy if i * CHUNK_TOKENS < n}
        self._release_if_empty(context)

    def victims(self, need: int, keep: Context) -> list[Context] | None:
        """Idle contexts to drop for ``need`` more free cells (and one sequence), or None.

        Those that nobody waits for first, least recently run first; then whoever was paused last, since it comes back
        last. One with unsaved chunks is passed over: a save is under way or will begin when a write ends, so waiting
        for it always ends.
        """
        short = need - self.free
        want_seq = keep.seq is None and not self._seqs
        if short <= 0 and not want_seq:
            return []
        chosen: list[Context] = []
        wanted = [context for context in reversed(self.idle.values()) if context.wanted]
        for context in (*(c for c in self.idle.values() if not c.wanted), *wanted):
            if short <= 0 and not want_seq:
                break
            if context is keep or context.committing or context.unsaved:
                continue
            chosen.append(context)
            short -= context.cells
            want_seq = False
        return None if short > 0 or want_seq else chosen

    def _release_if_empty(self, context: Context) -> None:
        if context.cells == 0 and context.seq is not None and not context.running:
            self.idle.pop(context.id, None)
            self._seqs.append(context.seq)
            context.seq = None
            context.lossy.clear()
