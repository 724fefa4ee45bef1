"""The cells of a llama.cpp context: which sequence has which, and their state in and out.

Law: the engine's thread only. From ``extend`` on a position keeps its cell until ``truncate``, whatever window the
model has.

A sliding-window model keeps two caches. In the second, llama.cpp gives a cell to another token when it belongs to one
sequence only and has left that sequence's window, even while other cells are free (``llama_kv_cache::find_slot``).
Truncating and exporting would then find holes. A cell of two sequences is never given away, so for such a model every
cell also belongs to a second sequence, the guard.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from llmaas.engine.base import CellsFull
from llmaas.engine.llama.cell_rows import Copies, find_cells
from llmaas.engine.llama.lib import C
from llmaas.errors import EngineFailed
from llmaas.kv_arrays import Bytes

T = TypeVar("T")

_BYTE = ctypes.POINTER(ctypes.c_uint8)
MOST_COPIES = 4096
"""More than twice the layers of any model: one copy for K and for V of each is what is hoped for."""


def window_of(model: Any) -> int:
    """Tokens that the sliding-window layers of a ``llama_model *`` see; 0 if it has none.

    Also 0 for a model with recurrent layers, whose state cannot be cut in the middle as the guard's is.
    """
    if C.llama_model_is_recurrent(model) or C.llama_model_is_hybrid(model):
        return 0
    return int(C.llama_model_n_swa(model))


def extra_sequences(model: Any, *, full_windows: bool = True) -> int:
    """How many sequences ``SequenceCells`` needs for itself: the scratch one, and the guard if all that has left a
    window is kept."""
    return 2 if full_windows and window_of(model) else 1


class SequenceCells:
    """The cells of sequences 0 .. n_seqs-1. ``window``: the result of ``window_of``; ``full``: whether what has left it
    is kept.
    """

    def __init__(self, context: Any, n_seqs: int, window: int, *, full: bool = True) -> None:
        self._context, self._memory = context, C.llama_get_memory(context)
        self.n_cells = int(C.llama_n_ctx(context))
        self.window = window
        self.lengths = [0] * n_seqs
        """How many positions each sequence has. Only methods of this class write it."""
        self._scratch = n_seqs
        """A sequence for states in transit, since llama.cpp reads and writes whole sequences. Empty between calls."""
        self._guard = n_seqs + 1 if window and full else None
        self.only_window = bool(window) and not full
        """Whether some layers have lost what is before the window: then no sequence can be cut."""

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
        """Remove positions from ``start`` on from ``seq``, also those that a failed step left. Cells that belong to no
        sequence then are free. Raises EngineFailed, and changes nothing, if the state cannot be cut there.
        """
        if self.only_window and start:
            raise EngineFailed("a sequence that has lost what is before its window cannot be cut in the middle")
        self._remove(seq, start)
        self.lengths[seq] = min(self.lengths[seq], start)
        if self._guard is None:
            return
        # A cell has one mark of the guard, however many sequences share it: mark again what the others have.
        self._remove(self._guard, start)
        for other, length in enumerate(self.lengths):
            if length > start:
                C.llama_memory_seq_cp(self._memory, other, self._guard, start, length)

    def take_back(self, seq: int, start: int) -> bool:
        """A step failed that had this sequence at ``start``: as ``truncate``. Where the state cannot be cut, and the
        step had begun to change it, the whole sequence goes. Returns whether the first ``start`` positions are left.
        """
        try:
            self.truncate(seq, start)
        except EngineFailed:
            self.truncate(seq, 0)
            return False
        return True

    def clear(self) -> None:
        """Empty all sequences, and write zeros to all cells."""
        C.llama_memory_clear(self._memory, True)
        self.lengths[:] = [0] * len(self.lengths)

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

    def write_whole(self, seq: int, n_tokens: int, buffer: Bytes) -> None:
        """Make the empty ``seq`` what another was that ``read_whole`` has read. Raises CellsFull, EngineFailed."""
        data = buffer.ctypes.data_as(_BYTE)
        n_read = C.llama_state_seq_set_data(self._context, data, buffer.size, seq)
        last = C.llama_memory_seq_pos_max(self._memory, seq)
        if n_read != buffer.size or last != n_tokens - 1:
            self._remove(seq, 0)
            if not n_read and sum(self.lengths) + n_tokens > self.n_cells:
                raise CellsFull(f"no {n_tokens} free cells of {self.n_cells}")
            raise EngineFailed(f"llama.cpp took {n_read} of {buffer.size} bytes of a state, up to position {last}")
        self.extend(seq, 0, n_tokens)

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

    def begin_write(
        self, seq: int, start: int, stop: int, buffer: Bytes, accept: Callable[[Copies], T | None]
    ) -> T | None:
        """As ``write``, but no row is copied: ``accept`` is told which copies would have been made. If it returns None,
        nothing is changed. Raises CellsFull.
        """
        if stop - start > self.n_cells:
            raise CellsFull(f"no {stop - start} free cells of {self.n_cells}")
        target = self._scratch if start else seq  # which llama.cpp empties first
        copies = find_cells(self._context, target, buffer, MOST_COPIES)
        if copies is None:
            raise CellsFull(f"no {stop - start} free cells of {self.n_cells}")
        accepted = accept(copies)
        if start and accepted is not None:
            C.llama_memory_seq_cp(self._memory, self._scratch, seq, start, stop)
        if start or accepted is None:
            self._remove(target, 0)
        if accepted is not None:
            self.extend(seq, start, stop)
        return accepted

    def _remove(self, seq: int, start: int) -> None:
        if not C.llama_memory_seq_rm(self._memory, seq, start, -1):
            raise EngineFailed("this model's state cannot be cut in the middle")
