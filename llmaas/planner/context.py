"""A context as the planner sees it: its chunks, and what of it is in CELLS.

Law: plain bookkeeping, no decisions. ``keys`` change in the disk quota only (``DiskQuota.set_keys``), which must know
of every change; ``seq``, ``cells`` and ``running`` change with the cell table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey, ContextId


class StateAt(NamedTuple):
    """The state of a context's sequence after its first ``n_tokens``."""

    n_tokens: int
    key: ChunkKey


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
    """A call on it waits to be admitted."""
    committing: bool = False
    """A call has finished or paused but its ContextChanged is still to come."""
    arriving: bool = False
    """Its chunks come from another node, the last ones first."""
    earlier: list[StateAt] = field(default_factory=list)
    """Where states of the whole sequence are kept: those at the ends of earlier calls that may have a copy, beside the
    one at the end of ``keys``. In ascending order. Only ``EarlierStates`` writes it."""
    rests: bool = False
    """Its present end is that of a call or of a change, and not a pause."""
    unsaved: int = 0
    """Saves of its chunks that have not begun; evicting the cells now would lose those chunks."""
    calls: int = 0
    """How often it was called since the start."""
    used: int = 0
    """Number of its last use, counted over all contexts. This and ``cooled`` belong to the disk quota."""
    cooled: int = 0
    """So many of its last chunks it no longer keeps on DISK."""

    def end_of(self, index: int) -> int:
        """How many tokens there are up to the end of a chunk; the last one may not be full."""
        return min((index + 1) * CHUNK_TOKENS, self.n_kv)
