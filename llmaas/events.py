"""F1. What the planner is told (events) and what it asks for (actions).

Law: plain values only. An event says what has happened in the world; an action is carried out by an
interpreter (``service.py`` in real time, ``replay.py`` in virtual time), which answers with later events.
Actions of one list are begun in order. Token values never appear here: the planner knows positions and keys.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from llmaas.records import AppId, ChunkKey, ChunkNotes, ChunkTolerance, ContextId, Precision, RequestId, Tier

# -- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContextOpened:
    """A context exists (created, forked, or found at start). ``keys`` cover its first ``n_kv`` tokens.

    ``idle``: seconds since it was last used.
    """

    context: ContextId
    app: AppId
    keys: tuple[ChunkKey, ...] = ()
    n_kv: int = 0
    idle: float = 0.0


@dataclass(frozen=True, slots=True)
class ContextChanged:
    """A context's committed tokens changed: a call returned, or it was truncated.

    ``keys`` name its chunks from chunk index ``first`` on; earlier ones are as they were. Together
    they cover the first ``n_kv`` tokens. KV beyond ``n_kv`` is void.
    """

    context: ContextId
    first: int
    keys: tuple[ChunkKey, ...]
    n_kv: int


@dataclass(frozen=True, slots=True)
class ContextClosed:
    """A context was deleted. ``gone``: chunks whose copies on DISK went with it, whoever else contains them."""

    context: ContextId
    gone: tuple[ChunkKey, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunksFound:
    """What the store holds, told once at start after every ContextOpened: (key, bytes, what is known of it)."""

    chunks: tuple[tuple[ChunkKey, int, ChunkNotes | None], ...]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A call wants its context in CELLS, ``n_total`` tokens computed, then ``max_new`` generated.

    ``max_new`` 0 is an append. At most one call of a context is submitted at a time.
    """

    request: RequestId
    context: ContextId
    n_total: int
    max_new: int
    priority: int = 5


@dataclass(frozen=True, slots=True)
class CancelRequested:
    request: RequestId


class Drawn(enum.Enum):
    """What became of one item of a step."""

    NOTHING = "nothing"
    """The item drew no token."""
    TOKEN = "token"
    """A token was drawn and joined the context."""
    LAST = "last"
    """A token was drawn, joined the context, and ends the answer (a stop string)."""
    END = "end"
    """An end-of-generation token was drawn; it does not join the context."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """``drawn`` is parallel to the items of the step.

    A burst that ran ``steps`` steps drew TOKEN for every item in all but the last one; ``drawn`` is of the last.
    """

    step: int
    drawn: tuple[Drawn, ...]
    steps: int = 1


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The engine could not run the step; the sequences are as before it."""

    step: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load ended: its first ``n_loaded`` chunks are in CELLS; ``damaged`` ones failed their checks."""

    load: int
    n_loaded: int
    damaged: tuple[ChunkKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetch ended: bytes in the POOL per chunk, 0 where the copy on DISK is missing or damaged."""

    fetch: int
    nbytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """A save ended: bytes in the POOL per chunk, 0 where coding failed."""

    save: int
    nbytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A write ended: bytes on DISK per chunk, 0 where it failed (I/O error, or ``full``: the disk has no room)."""

    write: int
    nbytes: tuple[int, ...]
    full: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement ended: what it could tell of some of its chunks."""

    measure: int
    scores: tuple[tuple[ChunkKey, ChunkTolerance], ...]


@dataclass(frozen=True, slots=True)
class Lowered:
    """Chunks were coded again: bytes in the POOL per chunk, 0 where the POOL still has the old form."""

    lower: int
    nbytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BudgetChanged:
    """What POOL or DISK may hold from now on; None leaves it as it is."""

    pool_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Flush:
    """The service is about to stop: what was held back from DISK, since it would soon be replaced, goes there now."""


Event = (
    ContextOpened
    | ContextChanged
    | ContextClosed
    | ChunksFound
    | Submitted
    | CancelRequested
    | StepDone
    | StepFailed
    | Loaded
    | Fetched
    | Saved
    | Written
    | Measured
    | Lowered
    | BudgetChanged
    | Flush
)

# -- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepItem:
    """Compute tokens start .. stop-1 of a context in ``seq``; with ``sample`` draw the one after."""

    request: RequestId
    context: ContextId
    seq: int
    start: int
    stop: int
    sample: bool


@dataclass(frozen=True, slots=True)
class RunStep:
    """One batch of the engine, or a burst of them. Answer: StepDone or StepFailed.

    While every item draws a token and none ends, the interpreter may go on with the next tokens of the same items,
    up to ``burst`` steps in all, before it answers. It answers sooner if another event comes.
    """

    step: int
    items: tuple[StepItem, ...]
    burst: int = 1


@dataclass(frozen=True, slots=True)
class ChunkSource:
    """A chunk to bring to CELLS. ``keep``: a copy read from DISK stays in the POOL."""

    key: ChunkKey
    start: int
    stop: int
    tier: Tier
    keep: bool


@dataclass(frozen=True, slots=True)
class LoadChunks:
    """Decode consecutive chunks and put them into ``seq`` in ascending order. Answer: Loaded."""

    load: int
    context: ContextId
    seq: int
    chunks: tuple[ChunkSource, ...]


@dataclass(frozen=True, slots=True)
class FetchChunks:
    """Read chunks from DISK into the POOL, one fetch after another in the order asked for. Answer: Fetched."""

    fetch: int
    context: ContextId
    keys: tuple[ChunkKey, ...]


@dataclass(frozen=True, slots=True)
class ChunkTarget:
    key: ChunkKey
    start: int
    stop: int
    precision: Precision


@dataclass(frozen=True, slots=True)
class SaveChunks:
    """Export chunks from ``seq`` (at once, before any later step) and code them into the POOL. Answer: Saved."""

    save: int
    context: ContextId
    seq: int
    chunks: tuple[ChunkTarget, ...]


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    key: ChunkKey
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class MeasureChunks:
    """Measure, at low priority, what coding would cost each of these chunks of ``seq``, which are all that it has up to
    the last one. Answer: Measured; soon and empty if the cells go meanwhile.
    """

    measure: int
    context: ContextId
    seq: int
    chunks: tuple[ChunkSpan, ...]


@dataclass(frozen=True, slots=True)
class LowerChunks:
    """Code chunks of the POOL again with fewer bits, from the form they have there. Answer: Lowered."""

    lower: int
    chunks: tuple[tuple[ChunkKey, Precision], ...]


@dataclass(frozen=True, slots=True)
class WriteChunks:
    """Write POOL chunks, with what is known of them, to the store. Answer: Written."""

    write: int
    context: ContextId
    keys: tuple[ChunkKey, ...]
    tolerances: tuple[ChunkTolerance | None, ...]


@dataclass(frozen=True, slots=True)
class StopWrite:
    """Memory is short: write no more of this write; its answer comes soon, and says what was written."""

    write: int


@dataclass(frozen=True, slots=True)
class NoteTolerances:
    """Keep with chunks on DISK what has been learnt of them since they were written."""

    tolerances: tuple[tuple[ChunkKey, ChunkTolerance], ...]


@dataclass(frozen=True, slots=True)
class DropPool:
    keys: tuple[ChunkKey, ...]


@dataclass(frozen=True, slots=True)
class DropDisk:
    keys: tuple[ChunkKey, ...]


@dataclass(frozen=True, slots=True)
class DropCells:
    """Remove positions from ``start`` on."""

    seq: int
    start: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request left the queue; its context owns ``seq``."""

    request: RequestId
    seq: int


@dataclass(frozen=True, slots=True)
class Switched:
    """All KV that the context had is in CELLS again. Where its tokens came from, in tokens."""

    request: RequestId
    cells: int
    pool: int
    disk: int
    recomputed: int


class Outcome(enum.Enum):
    STOP = "stop"
    LENGTH = "length"
    CONTEXT_FULL = "context_full"
    APPENDED = "appended"
    CANCELLED = "cancelled"
    ENGINE_FAILED = "engine_failed"


@dataclass(frozen=True, slots=True)
class Finish:
    """The request's one terminal outcome. The first ``n_kv`` tokens of its context are in CELLS.

    The interpreter commits the context and answers with ContextChanged.
    """

    request: RequestId
    context: ContextId
    outcome: Outcome
    n_kv: int


Action = (
    RunStep
    | LoadChunks
    | FetchChunks
    | SaveChunks
    | MeasureChunks
    | LowerChunks
    | WriteChunks
    | StopWrite
    | NoteTolerances
    | DropPool
    | DropDisk
    | DropCells
    | Admitted
    | Switched
    | Finish
)
