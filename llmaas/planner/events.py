"""Events: what the planner is given, one at a time.

Law: plain values only. An event says what has happened outside the planner, or how an action (``actions``) ended. Token
values never appear here: the planner knows positions and chunk keys.
"""

from __future__ import annotations

import enum

from llmaas.frozen import frozen
from llmaas.records import AppId, ChunkKey, ChunkMeta, ChunkSensitivity, ContextId, RequestId

FoundChunk = tuple[ChunkKey, int, ChunkMeta | None]
"""A chunk that the store holds: key, bytes and meta data."""


@frozen
class ContextOpened:
    """A context exists (created, forked, or found at start). ``keys`` cover its first ``n_kv`` tokens.

    ``idle``: seconds since it was last used. ``found``: those of its chunks that the store has held since the start and
    that no context has been known to contain. ``coldest``: it was last used before all contexts that are open already.
    """

    context: ContextId
    app: AppId
    keys: tuple[ChunkKey, ...] = ()
    n_kv: int = 0
    idle: float = 0.0
    found: tuple[FoundChunk, ...] = ()
    coldest: bool = False


@frozen
class ContextChanged:
    """A context's committed tokens changed: a call returned, or it was truncated.

    ``keys`` name its chunks from chunk index ``first`` on; earlier ones are as they were. Together
    they cover the first ``n_kv`` tokens. KV beyond ``n_kv`` is void. ``found``: as in ``ContextOpened``.
    """

    context: ContextId
    first: int
    keys: tuple[ChunkKey, ...]
    n_kv: int
    found: tuple[FoundChunk, ...] = ()


@frozen
class ContextClosed:
    """A context was deleted. ``gone``: chunks whose copies on DISK went with it, whoever else contains them."""

    context: ContextId
    gone: tuple[ChunkKey, ...] = ()


@frozen
class ChunksFound:
    """What the store has held since the start. Comes once, when all contexts have been looked at: a chunk that none of
    them contains is dropped."""

    chunks: tuple[FoundChunk, ...]


@frozen
class ChunksCame:
    """Another node has sent chunks of a context, whose keys name them already: the store holds them now. More may come,
    the last ones first. A call of the context may run meanwhile."""

    context: ContextId
    chunks: tuple[FoundChunk, ...]


@frozen
class ContextsExpected:
    """These contexts may be called soon, the first one soonest. Comes after a start, when the POOL is empty."""

    contexts: tuple[ContextId, ...]


@frozen
class Submitted:
    """A call wants its context in CELLS, ``n_total`` tokens computed, then ``max_new`` generated.

    ``max_new`` 0 is an append. At most one call of a context is submitted at a time.
    """

    request: RequestId
    context: ContextId
    n_total: int
    max_new: int
    priority: int = 5
    deadline: float | None = None
    """The moment from which nobody wants the call's result any more."""
    rate: float | None = None
    """Tokens per second that the call may generate at most."""
    adapter: str = ""
    """LoRA adapter that the call needs; only calls with the same one share a step."""
    adapter_bytes: int = 0
    """Memory that the adapter takes."""


@frozen
class CancelRequested:
    """Nobody wants the call's result any more."""

    request: RequestId


@frozen
class PriorityChanged:
    """A call that waits or runs has another priority from now on."""

    request: RequestId
    priority: int


@frozen
class RateChanged:
    """Tokens per second that an app, or without ``app`` all calls together, may generate at most; None: no limit."""

    app: AppId | None
    rate: float | None


@frozen
class DutyChanged:
    """Share of the time, above 0 and at most 1, that the engine may compute."""

    duty: float


@frozen
class Woken:
    """The moment that WakeAt named has come."""


class Drawn(enum.Enum):
    """What one item of a step drew."""

    NOTHING = "nothing"
    """The item drew no token."""
    TOKEN = "token"
    """A token was drawn and joined the context."""
    LAST = "last"
    """A token was drawn, joined the context, and ends the answer (a stop string)."""
    LATER = "later"
    """The token is drawn in a later step: the engine has taken back the item's last token, which must be computed
    again."""
    END = "end"
    """An end-of-generation token was drawn; it does not join the context."""


@frozen
class StepDone:
    """The step was computed. ``drawn`` is parallel to its items.

    A burst that ran ``steps`` steps drew TOKEN for every item in all but the last one; ``drawn`` is of the last.
    """

    step: int
    drawn: tuple[Drawn, ...]
    steps: int = 1


@frozen
class StepFailed:
    """The engine could not run the step; the sequences are as before it. ``aborted``: AbortStep asked for that."""

    step: int
    aborted: bool = False


@frozen
class Loaded:
    """A load ended: its first ``n_loaded`` chunks are in CELLS. Copies of ``damaged`` chunks failed their checks."""

    load: int
    n_loaded: int
    damaged: tuple[ChunkKey, ...] = ()


@frozen
class Stored:
    """One chunk of an action: its new copy is whole and takes so many bytes."""

    nbytes: int


class Failed(enum.Enum):
    """One chunk of an action: it has no new copy."""

    FAILED = "failed"


FAILED = Failed.FAILED
ChunkOutcome = Stored | Failed
"""What became of one chunk; the ``outcomes`` of an event are parallel to the chunks of the action that it answers."""


@frozen
class Fetched:
    """A fetch ended: FAILED are chunks whose copy on DISK is missing or damaged; the others are in the POOL, too."""

    fetch: int
    outcomes: tuple[ChunkOutcome, ...]


@frozen
class Saved:
    """A save ended: FAILED are chunks that could not be coded; the others are in the POOL."""

    save: int
    outcomes: tuple[ChunkOutcome, ...]


@frozen
class Written:
    """A write ended: FAILED are chunks that are not on DISK, by an I/O error or since the disk is ``full``."""

    write: int
    outcomes: tuple[ChunkOutcome, ...]
    full: bool = False


@frozen
class Measured:
    """A measurement ended: the sensitivities of its chunks, as far as they could be measured."""

    measure: int
    scores: tuple[tuple[ChunkKey, ChunkSensitivity], ...]


@frozen
class Lowered:
    """Chunks were coded again with fewer bits: of those that are FAILED, the POOL still has the old form."""

    lower: int
    outcomes: tuple[ChunkOutcome, ...]


@frozen
class BudgetChanged:
    """Bytes that chunks in the POOL or on DISK may take from now on, and the mean of bits per value that they are coded
    with; None leaves a budget as it is."""

    pool_bytes: int | None = None
    disk_bytes: int | None = None
    bits: float | None = None


@frozen
class AppDiskChanged:
    """Bytes that an app's chunks on DISK may take; None: no fewer than those of all apps together."""

    app: AppId
    disk_bytes: int | None


@frozen
class Flush:
    """The service is about to stop: write the chunks that were not written since they would soon be replaced."""


ContextEvent = ContextOpened | ContextChanged | ContextClosed | ChunksFound | ChunksCame
"""What happens to contexts and to the store."""
CallEvent = Submitted | CancelRequested | PriorityChanged
"""What callers want."""
StepEvent = StepDone | StepFailed
"""Answers to RunStep."""
SwitchEvent = Loaded | Fetched
"""Answers to actions that bring chunks to CELLS."""
SwapOutEvent = Saved | Measured | Written | Lowered
"""Answers to actions that bring chunks from CELLS to POOL and DISK."""
LimitEvent = RateChanged | DutyChanged | BudgetChanged | AppDiskChanged
"""What may be used from now on."""
Event = (
    ContextEvent | CallEvent | StepEvent | SwitchEvent | SwapOutEvent | LimitEvent | ContextsExpected | Woken | Flush
)
