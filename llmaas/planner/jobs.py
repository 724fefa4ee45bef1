"""Contexts, and the calls that are on their way (jobs), as the planner sees them.

Law: plain bookkeeping, no decisions. Everything here is private to the planner.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from llmaas.planner.actions import Outcome
from llmaas.records import AppId, ChunkKey, ContextId, RequestId


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
