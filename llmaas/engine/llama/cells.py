"""The cells of a llama.cpp context: which sequence has which, and their state in and out.

Law: the engine's thread only. Once ``hold`` was told of a position, its cell stays until ``remove``, whatever window
the model has.

A sliding-window model keeps two caches, and llama.cpp gives away cells of the second that have left the window of the
one sequence they belong to, even while others are free (``llama_kv_cache::find_slot``). Truncating and exporting would
then find holes. A cell of two sequences is never given away, so with ``window`` every cell also belongs to a guard.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

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


class SequenceCells:
    """Sequences 0 .. n_seqs-1, one more for states on their way in and out, and the guard if ``window`` is not 0."""

    def __init__(self, context: Any, n_seqs: int, window: int) -> None:
        self._context, self._memory = context, C.llama_get_memory(context)
        self.window = window
        self._scratch = n_seqs
        self._guard = n_seqs + 1 if window else None
        self._held = [0] * n_seqs

    def hold(self, seq: int, start: int, stop: int) -> None:
        """Positions start .. stop-1 of ``seq`` have just come into cells: keep them."""
        if self._guard is not None:
            C.llama_memory_seq_cp(self._memory, seq, self._guard, start, stop)
            self._held[seq] = stop

    def share(self, src: int, dst: int, stop: int) -> None:
        """Let empty ``dst`` have the first ``stop`` positions of ``src`` as well."""
        C.llama_memory_seq_cp(self._memory, src, dst, 0, stop)
        if self._guard is not None:
            self._held[dst] = stop

    def remove(self, seq: int, start: int) -> None:
        """Take positions from ``start`` on away from ``seq``; a cell without a sequence is free."""
        self._take_away(seq, start)
        if self._guard is None:
            return
        self._held[seq] = min(self._held[seq], start)
        # The guard has one mark a cell, not one a sequence: what others have there is marked again.
        self._take_away(self._guard, start)
        for other, length in enumerate(self._held):
            if length > start:
                C.llama_memory_seq_cp(self._memory, other, self._guard, start, length)

    def read(self, seq: int, start: int, stop: int, buffer: Bytes) -> None:
        """The state of positions start .. stop-1 into ``buffer``, as far as it fits."""
        C.llama_memory_seq_cp(self._memory, seq, self._scratch, start, stop)
        C.llama_state_seq_get_data(self._context, buffer.ctypes.data_as(_BYTE), buffer.size, self._scratch)
        self._take_away(self._scratch, 0)

    def read_whole(self, seq: int) -> Bytes:
        """The state of all of ``seq``. Where layers have a window, theirs is of its last positions only."""
        buffer = np.empty(int(C.llama_state_seq_get_size(self._context, seq)), np.uint8)
        C.llama_state_seq_get_data(self._context, buffer.ctypes.data_as(_BYTE), buffer.size, seq)
        return buffer

    def write(self, seq: int, start: int, stop: int, buffer: Bytes) -> bool:
        """A state of positions start .. stop-1 into free cells, for ``seq``; False if there are too few."""
        taken = C.llama_state_seq_set_data(self._context, buffer.ctypes.data_as(_BYTE), buffer.size, self._scratch)
        if taken:
            C.llama_memory_seq_cp(self._memory, self._scratch, seq, start, stop)
        self._take_away(self._scratch, 0)
        if taken:
            self.hold(seq, start, stop)
        return bool(taken)

    def _take_away(self, seq: int, start: int) -> None:
        if not C.llama_memory_seq_rm(self._memory, seq, start, -1):
            raise EngineFailed("this model's state cannot be cut in the middle")
