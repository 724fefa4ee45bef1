"""Learns the layout of a model's states from a real one.

Law: numpy only, no llama_cpp. A state that does not fit is refused with a reason; nothing is guessed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmaas.engine.llama.state_blob import CELL, HEAD, LAYER, TYPE_F16, Section, rows_at
from llmaas.engine.llama.state_layout import StateLayout, Unchunkable
from llmaas.kv_arrays import Bytes
from llmaas.records import Geometry

_MOST_EXTRA = 64
"""Most bytes of further data per cell to look for: with some models llama.cpp stores (x, y) and the token id."""


def learn_layout(buffer: Bytes, n_tokens: int) -> StateLayout:
    """The layout of a model's states, from the state of a sequence with positions 0 .. n_tokens-1. Raises Unchunkable.

    If there are two sections, which layer a row belongs to is not known yet (see ``layer_order``): in the result the
    layers of the first section come first.
    """
    data = buffer.tobytes()
    section, at = _section(data, 8, n_tokens)
    sections = [section]
    while at < len(data):
        if len(sections) == 2:
            raise Unchunkable("the model's state has more than two sections")
        try:
            section, at = _section(data, at, n_tokens)
        except Unchunkable as reason:
            raise Unchunkable(f"the model's state has further sections: {reason}") from None
        sections.append(section)
    if len({(section.k_row, section.v_row) for section in sections}) != 1:
        raise Unchunkable("layers have rows of different sizes")
    layers = tuple(range(sum(section.n_layer for section in sections)))
    return StateLayout(_u32(data, 0), tuple(sections), layers)


def layer_order(changed: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """The layer of each row of a state in two sections, lowest first within each section. Raises Unchunkable.

    ``changed`` (n_first, n_layer): element (i, j) is true if altering V of row i of the first section changes row j of
    the next token's K. What a layer reads from its cache reaches only the layers after it, so the number of changed
    rows says which layer it is.
    """
    n_layer = changed.shape[1]
    first = n_layer - 1 - changed.sum(axis=1)
    rest = np.setdiff1d(np.arange(n_layer), first)
    layers = np.concatenate([first, rest])
    if len(layers) != n_layer or not np.array_equal(changed, layers > first[:, None]):
        raise Unchunkable("which rows of the model's state belong to which layer does not show")
    return tuple(int(layer) for layer in layers)


def _section(data: bytes, at: int, n_tokens: int) -> tuple[Section, int]:
    """The section that begins at ``at``, and where it ends."""
    n_stream, n_cells = _u32(data, at), _u32(data, at + 4)
    if n_stream != 1 or n_cells != n_tokens:
        raise Unchunkable(f"the model's state has {n_cells} cells in {n_stream} streams for {n_tokens} tokens")
    _refuse_extras(data, at + HEAD, n_tokens)
    at += rows_at(n_tokens)
    if _u32(data, at - 8):
        raise Unchunkable("V is stored transposed (flash attention is off)")
    n_layer = _u32(data, at - 4)
    at, k_row = _walk(data, at, n_layer, n_tokens)
    at, v_row = _walk(data, at, n_layer, n_tokens)
    return Section(n_layer, k_row, v_row), at


def _refuse_extras(data: bytes, at: int, n_tokens: int) -> None:
    """Raise Unchunkable for cells with further data: chunks hold rows only, so it could not be given back."""
    wanted = [np.array([pos, 1], "<i4").tobytes() for pos in range(n_tokens)]
    for extra in range(0, _MOST_EXTRA, 4):
        size = CELL.itemsize + extra
        if [data[at + i * size : at + i * size + 8] for i in range(n_tokens)] == wanted:
            if extra:
                raise Unchunkable(f"cells carry {extra} more bytes each (image positions or token ids)")
            return
    raise Unchunkable("the model's state has no table of cells")


def _walk(data: bytes, at: int, n_layer: int, n_tokens: int) -> tuple[int, int]:
    """Walk over the K (or V) rows of all layers. Returns where they end, and the bytes of a row."""
    rows: list[int] = []
    while len(rows) < n_layer and at + LAYER.itemsize <= len(data):
        kind, row = _u32(data, at), _u32(data, at + 4) | _u32(data, at + 8) << 32
        if kind != TYPE_F16:
            raise Unchunkable(f"K and V are not f16 (ggml type {kind})")
        rows.append(row)
        at += LAYER.itemsize + n_tokens * row
    if not rows or len(rows) < n_layer or at > len(data):
        raise Unchunkable("the model's state ends early: not every layer has K and V rows")
    if len(set(rows)) != 1:
        raise Unchunkable("layers have rows of different sizes")
    return at, rows[0]


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def checked_geometry(promised: Geometry, layout: StateLayout) -> Geometry:
    """The geometry that the state shows. Raises Unchunkable if it contradicts ``promised``, that of the metadata."""
    k_dim, v_dim = layout.sections[0].k_row // 2, layout.sections[0].v_row // 2
    if (k_dim, v_dim) != (promised.k_dim, promised.v_dim):
        raise Unchunkable(f"rows of {k_dim}/{v_dim} values, the metadata says {promised.k_dim}/{promised.v_dim}")
    return Geometry(len(layout.layers), k_dim, v_dim, promised.head_dim_k, promised.head_dim_v)
