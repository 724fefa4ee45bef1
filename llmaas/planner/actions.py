"""Actions: what the planner asks for.

Law: plain values only. An action is carried out by an interpreter (``service.interpreter`` in real time,
``replay.simulator`` in virtual time), which answers with later events. Actions of one list are begun in order.
"""

from __future__ import annotations

import enum
import math

from llmaas.frozen import frozen
from llmaas.records import ChunkKey, ChunkSensitivity, ContextId, Precision, RequestId, Tier


@frozen
class StepItem:
    """Compute tokens ``start`` .. ``stop - 1`` of a context in ``seq``; with ``sample``, draw the token after them."""

    request: RequestId
    context: ContextId
    seq: int
    start: int
    stop: int
    sample: bool


@frozen
class RunStep:
    """One batch of the engine, or a burst of batches. Answer: StepDone or StepFailed.

    ``adapter``: the LoRA adapter that all items need, "" for none.

    While every item draws a token and none ends, the interpreter may go on with the next tokens of the same items,
    up to ``burst`` steps in all, before it answers. It answers sooner if another event comes.

    ``draw_s``: seconds that draws by grammars may take together: where other apps may wait for the step's end, tokens
    that take longer are drawn in later steps.
    """

    step: int
    items: tuple[StepItem, ...]
    burst: int = 1
    adapter: str = ""
    draw_s: float = math.inf


@frozen
class AbortStep:
    """End this step at once if it has not ended: a more urgent call has come. The step is answered as usual."""

    step: int


@frozen
class WakeAt:
    """Answer with Woken at ``when``. This replaces an earlier WakeAt."""

    when: float


@frozen
class ChunkSource:
    """A chunk to bring to CELLS, from its copy in ``tier``. ``keep``: what is read from DISK stays in the POOL, too."""

    key: ChunkKey
    start: int
    stop: int
    tier: Tier
    keep: bool


@frozen
class LoadChunks:
    """Decode consecutive chunks and put them into ``seq`` in ascending order. Answer: Loaded."""

    load: int
    context: ContextId
    seq: int
    chunks: tuple[ChunkSource, ...]


@frozen
class StopLoad:
    """Nobody wants this load any more: answer it as soon as the engine has taken the chunks that it was given."""

    load: int


@frozen
class FetchChunks:
    """Read chunks from DISK into the POOL. Fetches are carried out one after another, in order. Answer: Fetched."""

    fetch: int
    context: ContextId
    keys: tuple[ChunkKey, ...]


@frozen
class ChunkTarget:
    """A chunk to code: tokens ``start`` .. ``stop - 1`` at ``precision``."""

    key: ChunkKey
    start: int
    stop: int
    precision: Precision


@frozen
class SaveChunks:
    """Export chunks from ``seq``, before any later step, and code them into the POOL. Answer: Saved."""

    save: int
    context: ContextId
    seq: int
    chunks: tuple[ChunkTarget, ...]


@frozen
class ChunkSpan:
    """A chunk: tokens ``start`` .. ``stop - 1``."""

    key: ChunkKey
    start: int
    stop: int


@frozen
class MeasureChunks:
    """Measure, at low priority, how sensitive the chunks at the beginning of ``seq`` are. Answer: Measured.

    If the cells are dropped meanwhile, the answer comes soon, and without scores.
    """

    measure: int
    context: ContextId
    seq: int
    chunks: tuple[ChunkSpan, ...]


@frozen
class LowerChunks:
    """Code chunks of the POOL again with fewer bits, from the form they have there. Answer: Lowered."""

    lower: int
    chunks: tuple[tuple[ChunkKey, Precision], ...]


@frozen
class WriteChunks:
    """Write chunks of the POOL, and what was measured of them, to the store. Answer: Written."""

    write: int
    context: ContextId
    keys: tuple[ChunkKey, ...]
    sensitivities: tuple[ChunkSensitivity | None, ...]


@frozen
class StopWrite:
    """Memory is short: write no more of this write. Its answer comes soon, and says what was written."""

    write: int


@frozen
class PersistSensitivity:
    """Keep with chunks on DISK what was measured of them since they were written."""

    sensitivities: tuple[tuple[ChunkKey, ChunkSensitivity], ...]


@frozen
class DropPool:
    """Remove these chunks from the POOL."""

    keys: tuple[ChunkKey, ...]


@frozen
class DropDisk:
    """Remove these chunks from DISK."""

    keys: tuple[ChunkKey, ...]


@frozen
class DropCells:
    """Remove the sequence's tokens from position ``start`` on from CELLS."""

    seq: int
    start: int


@frozen
class Admitted:
    """The request waits no longer; its context has sequence ``seq``."""

    request: RequestId
    seq: int


@frozen
class Paused:
    """The request waits again, as others need its cells. The first ``n_kv`` tokens of its context are in CELLS.

    Answer: ContextChanged, with the keys of what it has computed so far.
    """

    request: RequestId
    context: ContextId
    n_kv: int


@frozen
class Switched:
    """All KV that the context had is in CELLS again. How many tokens came from where."""

    request: RequestId
    cells: int
    pool: int
    disk: int
    recomputed: int


class Outcome(enum.Enum):
    """How a call ended. STOP: at its own end; LENGTH: at ``max_new``; APPENDED: there was nothing to generate."""

    STOP = "stop"
    LENGTH = "length"
    CONTEXT_FULL = "context_full"
    APPENDED = "appended"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    ENGINE_FAILED = "engine_failed"


@frozen
class Finish:
    """The request has ended, with its one outcome. The first ``n_kv`` tokens of its context are in CELLS.

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
