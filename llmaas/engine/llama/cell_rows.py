"""Finds cells for a state without copying its rows, so that others may write them there.

Law: bytes and addresses only. It records where llama.cpp would copy what (``_cell_rows.c``), and takes for rows of
cells only what is exactly as expected.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from llmaas.engine.llama.lib import C, cell_rows_library, ggml_function
from llmaas.engine.llama.state_layout import Blob
from llmaas.kv_arrays import F16, Bytes, KvSlab

_COPY = np.dtype([("to", np.uintp), ("at", np.uintp), ("size", np.uintp)])
"""``Rows`` of _cell_rows.c: a copy of ``size`` bytes that llama.cpp would have made."""
Copies = npt.NDArray[np.void]


def available() -> bool:
    """Whether cells can be found so: the C part was built, and all cells are in this machine's memory."""
    return cell_rows_library is not None and not C.llama_supports_gpu_offload()


def untouched(size: int) -> Bytes:
    """A buffer of zeros that takes memory only where it is written. Raises MemoryError."""
    try:
        return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    except OSError as error:
        raise MemoryError(f"no room for {size} bytes of addresses") from error


def find_cells(context: Any, seq: int, buffer: Bytes, most: int) -> Copies | None:
    """``llama_state_seq_set_data`` of the state in ``buffer``, without copying its rows. None if there are no cells.

    If there are more than ``most`` copies, the result is empty.
    """
    assert cell_rows_library is not None
    copies, n = np.zeros(most, _COPY), ctypes.c_int32()
    taken = cell_rows_library.cells_rows(
        ggml_function("llama_state_seq_set_data"),
        context,
        buffer.ctypes.data,
        buffer.size,
        seq,
        copies.ctypes.data,
        most,
        ctypes.byref(n),
    )
    return None if not taken else copies[: n.value] if n.value <= most else copies[:0]


def slabs_in_cells(blob: Blob, copies: Copies) -> list[KvSlab] | None:
    """The rows of ``blob`` where they belong in cells: a slab for each run of neighbouring cells.

    None unless the copies are, for each layer's K and then for each layer's V, one for each run, and neighbouring
    layers are equally far apart.
    """
    (part,) = blob.parts
    n_layer, n_tokens, _ = part.k.shape
    n_runs = len(copies) // (2 * n_layer)
    if not n_runs or len(copies) != 2 * n_layer * n_runs:
        return None
    of_k, of_v = copies.reshape(2, n_layer, n_runs)
    tokens = [int(size) // part.k.strides[1] for size in of_k["size"][0]]
    if sum(tokens) != n_tokens:
        return None
    slabs, first = [], 0
    for run, n in enumerate(tokens):
        rows = slice(first, first + n)
        k, v = _in_cells(part.k[:, rows], of_k[:, run]), _in_cells(part.v[:, rows], of_v[:, run])
        if k is None or v is None:
            return None
        slabs.append(KvSlab(k, v))
        first += n
    return slabs


def _in_cells(rows: F16, copies: Copies) -> F16 | None:
    n_layer, n_tokens, dim = rows.shape
    size = 2 * n_tokens * dim
    at = rows.ctypes.data + rows.strides[0] * np.arange(n_layer, dtype=np.uintp)
    if not (copies["at"] == at).all() or not (copies["size"] == size).all():
        return None
    to = [int(address) for address in copies["to"]]
    apart = to[1] - to[0] if n_layer > 1 else size
    if apart < size or to != list(range(to[0], to[0] + n_layer * apart, apart)):
        return None
    memory = (ctypes.c_uint8 * ((n_layer - 1) * apart + size)).from_address(to[0])
    return np.ndarray((n_layer, n_tokens, dim), np.float16, memory, 0, (apart, 2 * dim, 2))
