"""What the planner counts.

Law: counts only grow. The planner's parts write them, others read them.
"""

from __future__ import annotations

from dataclasses import dataclass


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
