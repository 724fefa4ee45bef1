"""The cells of a llama.cpp context: which sequence has which, and their state in and out.

Law: the engine's thread only. Once ``extend`` was told of a position, its cell stays until ``truncate``, whatever
window the model has.

A sliding-window model keeps two caches, and llama.cpp gives away cells of the second that have left the window of the
one sequence they belong to, even while others are free (``llama_kv_cache::find_slot``). Truncating and exporting would
then find holes. A cell of two sequences is never given away, so for such a model every cell also belongs to a guard.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from llmaas.engine.base import CellsFull
from llmaas.engine.llama.lib import C
from llmaas.engine.llama.state_blob import Bytes
from llmaas.errors import EngineFailed

_BYTE = ctypes.POINTER(ctypes.c_uint8)


def window_of(model: Any) -> int:
    """Tokens that the sliding-window layers of a ``llama_model *`` see; 0 if it has none.

    Also 0 with recurrent layers: they cannot follow a guard that is cut in the middle.
    """
    if C.llama_model_is_recurrent(model) or C.llama_model_is_hybrid(model):
        return 0
    return int(C.llama_model_n_swa(model))


def extra_sequences(model: Any) -> int:
    """Sequences that ``SequenceCells`` needs for itself: one for states in transit, and the guard where it has one."""
    return 2 if window_of(model) else 1


class SequenceCells:
    """The cells of sequences 0 .. n_seqs-1. ``window``: what ``window_of`` says of the model."""

    def __init__(self, context: Any, n_seqs: int, window: int) -> None:
        self._context, self._memory = context, C.llama_get_memory(context)
        self.n_cells = int(C.llama_n_ctx(context))
        self.window = window
        self.lengths = [0] * n_seqs
        """Positions that each sequence has: 0 .. length-1. Read it; only methods here write it."""
        self._scratch = n_seqs
        """A sequence that is empty but for the time of one call: llama.cpp reads and writes states of whole ones."""
        self._guard = n_seqs + 1 if window else None

    def extend(self, seq: int, start: int, stop: int) -> None:
        """Record that positions start .. stop-1 of ``seq`` have just come into cells."""
        if self._guard is not None:
            C.llama_memory_seq_cp(self._memory, seq, self._guard, start, stop)
        self.lengths[seq] = stop

    def share(self, src: int, dst: int, stop: int) -> None:
        """Let empty ``dst`` have the first ``stop`` positions of ``src`` as well."""
        if stop:  # to llama.cpp, 0 .. 0 is everything
            C.llama_memory_seq_cp(self._memory, src, dst, 0, stop)
        self.lengths[dst] = stop

    def truncate(self, seq: int, start: int) -> None:
        """Take positions from ``start`` on away from ``seq``, also such that a failed step left. A cell without a
        sequence is free."""
        self._remove(seq, start)
        self.lengths[seq] = min(self.lengths[seq], start)
        if self._guard is None:
            return
        # The guard has one mark a cell, not one a sequence: what others have there is marked again.
        self._remove(self._guard, start)
        for other, length in enumerate(self.lengths):
            if length > start:
                C.llama_memory_seq_cp(self._memory, other, self._guard, start, length)

    def read(self, seq: int, start: int, stop: int, buffer: Bytes) -> None:
        """Write the state of positions start .. stop-1 into ``buffer``, as far as it fits."""
        C.llama_memory_seq_cp(self._memory, seq, self._scratch, start, stop)
        C.llama_state_seq_get_data(self._context, buffer.ctypes.data_as(_BYTE), buffer.size, self._scratch)
        self._remove(self._scratch, 0)

    def read_whole(self, seq: int) -> Bytes:
        """The state of all of ``seq``. Where layers have a window, theirs is of its last positions only."""
        buffer = np.empty(int(C.llama_state_seq_get_size(self._context, seq)), np.uint8)
        C.llama_state_seq_get_data(self._context, buffer.ctypes.data_as(_BYTE), buffer.size, seq)
        return buffer

    def write(self, seq: int, start: int, stop: int, buffer: Bytes) -> None:
        """Put a state of positions start .. stop-1, with sound headers, into free cells. Raises CellsFull."""
        fits = stop - start <= self.n_cells
        if fits:
            data = buffer.ctypes.data_as(_BYTE)
            # With sound headers only one thing can fail in llama.cpp, to find free cells: then it returns 0.
            fits = bool(C.llama_state_seq_set_data(self._context, data, buffer.size, self._scratch))
            if fits:
                C.llama_memory_seq_cp(self._memory, self._scratch, seq, start, stop)
            self._remove(self._scratch, 0)
        if not fits:
            raise CellsFull(f"no {stop - start} free cells of {self.n_cells}")
        self.extend(seq, start, stop)

    def _remove(self, seq: int, start: int) -> None:
        if not C.llama_memory_seq_rm(self._memory, seq, start, -1):
            raise EngineFailed("this model's state cannot be cut in the middle")
