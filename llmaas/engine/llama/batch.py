"""A ``llama_batch``, allocated once and filled through numpy.

Law: filling takes a few microseconds for one token and tens for 512. Assigning each element through ctypes takes a
hundred times that, which a 135M model would feel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmaas.engine.base import Aborted, BatchItem, CellsFull
from llmaas.engine.llama.lib import C
from llmaas.errors import EngineFailed


class Batch:
    """A batch of at most ``capacity`` tokens, each of one sequence. ``struct`` is the ``llama_batch``."""

    def __init__(self, capacity: int) -> None:
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._seq = np.zeros(capacity, np.int32)
        self._output = np.zeros(capacity, np.int8)
        self._ramp = np.arange(capacity, dtype=np.int32)
        self._n_seq = np.ones(capacity, np.int32)
        # llama.cpp wants a pointer to each token's list of sequences. Each of these lists is one element of _seq.
        self._seq_ptr = self._seq.ctypes.data + 4 * np.arange(capacity, dtype=np.uintp)
        self.struct: Any = C.llama_batch(
            n_tokens=0,
            token=_pointer(self._token, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._pos, ctypes.c_int32),
            n_seq_id=_pointer(self._n_seq, ctypes.c_int32),
            seq_id=_pointer(self._seq_ptr, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._output, ctypes.c_int8),
        )

    def fill(self, items: Sequence[BatchItem]) -> list[int]:
        """Fill in ``items``. Returns the index of each item's last token."""
        last: list[int] = []
        begin = 0
        for item in items:
            n = len(item.tokens)
            end = begin + n
            self._token[begin:end] = item.tokens
            np.add(self._ramp[:n], item.pos, out=self._pos[begin:end])
            self._seq[begin:end] = item.seq
            self._output[begin:end] = 0
            self._output[end - 1] = item.sampler is not None
            last.append(end - 1)
            begin = end
        self.struct.n_tokens = begin
        return last

    def want_all(self, n_tokens: int) -> None:
        """Have llama.cpp give what it computes for each of the ``n_tokens`` tokens that were filled in."""
        self._output[:n_tokens] = 1


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def decode_failure(status: int) -> Exception:
    """The exception for a return code of llama_decode (llama.h)."""
    if status == 1:
        return CellsFull("no free cells for this step")
    if status == 2:
        return Aborted("the step was aborted")
    return EngineFailed(f"llama_decode failed with code {status}")
