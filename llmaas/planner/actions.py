"""What the planner asks for.

Law: plain values only. An action is carried out by an interpreter (``service`` in real time, ``replay`` in
virtual time), which answers with later events. Actions of one list are begun in order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from llmaas.records import ChunkKey, ChunkSensitivity, ContextId, Precision, RequestId, Tier


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

    ``adapter``: the LoRA adapter that all of its items want, "" for none.

    While every item draws a token and none ends, the interpreter may go on with the next tokens of the same items,
    up to ``burst`` steps in all, before it answers. It answers sooner if another event comes.
    """

    step: int
    items: tuple[StepItem, ...]
    burst: int = 1
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class AbortStep:
    """Somebody more urgent came: end this long step at once, if it has not ended. Its answer is as ever."""

    step: int


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Say Woken at ``when``; it replaces what was asked for before."""

    when: float


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
class StopLoad:
    """Nobody wants this load any more: its answer comes as soon as the engine has put in what it was given already."""

    load: int


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
    sensitivities: tuple[ChunkSensitivity | None, ...]


@dataclass(frozen=True, slots=True)
class StopWrite:
    """Memory is short: write no more of this write; its answer comes soon, and says what was written."""

    write: int


@dataclass(frozen=True, slots=True)
class PersistSensitivity:
    """Keep with chunks on DISK what has been learnt of them since they were written."""

    sensitivities: tuple[tuple[ChunkKey, ChunkSensitivity], ...]


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
class Paused:
    """The request waits again: its cells are wanted by others. The first ``n_kv`` tokens of its context are in CELLS.

    Answer: ContextChanged, with the keys of what it has computed so far.
    """

    request: RequestId
    context: ContextId
    n_kv: int


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
    EXPIRED = "expired"
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


ChunkAction = (
    LoadChunks
    | StopLoad
    | FetchChunks
    | SaveChunks
    | MeasureChunks
    | LowerChunks
    | WriteChunks
    | StopWrite
    | PersistSensitivity
    | DropPool
    | DropDisk
    | DropCells
)
"""What moves, changes or removes chunks."""
Action = RunStep | AbortStep | WakeAt | Admitted | Paused | Switched | Finish | ChunkAction
