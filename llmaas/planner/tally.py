"""The tally: what the planner counts.

Law: counts only grow. The planner's parts write them, others read them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Counts since start. Tokens, chunks or bytes as named."""

    switches: int = 0
    """Contexts that came back into CELLS; those that had never left included."""
    tokens_from_cells: int = 0
    tokens_from_pool: int = 0
    tokens_from_disk: int = 0
    tokens_recomputed: int = 0
    tokens_prefilled: int = 0
    tokens_generated: int = 0
    contexts_left_cells: int = 0
    """Contexts that were dropped from CELLS to make room there."""
    chunks_evicted: int = 0
    chunks_saved: int = 0
    chunks_unsaved: int = 0
    """Chunks that could not be coded, or for which the POOL had no room."""
    chunks_written: int = 0
    bytes_written: int = 0
    writes_failed: int = 0
    """Chunks that could not be written."""
    writes_refused: int = 0
    """Chunks that the disk quota had no room for."""
    writes_spared: int = 0
    """Chunks that were not written, since they are not worth the wear."""
    chunks_left_disk: int = 0
    """Chunks that were dropped from DISK to make room there."""
    chunks_damaged: int = 0
    chunks_lowered: int = 0
    """Chunks that were coded again with fewer bits."""
    pauses: int = 0
    """Times that a call left its cells to others before it had ended."""
    steps_aborted: int = 0
    expired: int = 0
    """Calls whose deadline passed before they had ended."""
