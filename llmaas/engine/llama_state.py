"""F6. The blob in which llama.cpp gives and takes the KV of one sequence, as numpy views.

Law: bytes and numpy only, no llama_cpp. The layout is learnt from a real blob; what does not fit is refused
with a reason, never guessed. Rows of a ``Blob`` are always in position order.

    u32 magic, i32 seq, u32 n_stream = 1, u32 n_cells
    n_cells x (i32 pos, u32 n_seq = 1, [extra], i32 seq)
    u32 v_trans = 0, u32 n_layer
    n_layer x (i32 type, u64 row_bytes, n_cells rows)     K
    n_layer x (i32 type, u64 row_bytes, n_cells rows)     V

llama.cpp writes the rows in the order of its cells, which is not the order of positions where the free cells
were scattered when the tokens came: ``StateLayout.read`` puts them right.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmaas.records import F16, KvSlab

Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint32]
_Table = npt.NDArray[np.void]

_CELL = np.dtype([("pos", "<i4"), ("n_seq", "<u4"), ("seq", "<i4")])
_LAYER = np.dtype([("type", "<i4"), ("row", "<u8")])
_HEAD = 16
_TYPE_F16 = 1
_MOST_EXTRA = 64
"""Bytes of per-cell extras to look for: llama.cpp stores (x, y) and the token id with some models."""


class Unchunkable(Exception):
    """The state of this model cannot be cut by tokens; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """A blob's buffer with views of its parts: ``cells`` (n), ``k`` (n_layer, n, k_dim), ``v`` (n_layer, n, v_dim)."""

    buffer: Bytes
    cells: npt.NDArray[np.void]
    k: F16
    v: F16

    @property
    def n_tokens(self) -> int:
        return len(self.cells)

    def slab(self) -> KvSlab:
        return KvSlab(self.k, self.v, owner=self)

    def place(self, start: int) -> None:
        """Say that the rows belong to the positions from ``start`` on."""
        self.cells["pos"] = np.arange(start, start + self.n_tokens, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The layout of one model's blobs. ``k_row`` and ``v_row`` are bytes of a token's row in one layer."""

    magic: int
    n_layer: int
    k_row: int
    v_row: int

    def size(self, n_tokens: int) -> int:
        """Bytes of a blob of ``n_tokens``."""
        return _rows_at(n_tokens) + self._part(self.k_row, n_tokens) + self._part(self.v_row, n_tokens)

    def _part(self, row: int, n_tokens: int) -> int:
        return self.n_layer * (_LAYER.itemsize + n_tokens * row)

    def blank(self, buffer: Bytes, n_tokens: int) -> Blob:
        """A blob in ``buffer`` with its headers filled in; rows and positions are for the caller to write."""
        head, middle, cells, layers = self._headers(buffer, n_tokens)
        head[:] = self.magic, 0, 1, n_tokens
        middle[:] = 0, self.n_layer
        cells["n_seq"], cells["seq"] = 1, 0  # llama.cpp reads and ignores the sequence
        for table, row in zip(layers, (self.k_row, self.v_row), strict=True):
            table["type"], table["row"] = _TYPE_F16, row
        return self._blob(buffer, n_tokens)

    def intact(self, blob: Blob) -> bool:
        """True if nobody wrote over the headers of ``blob``."""
        if blob.buffer.size != self.size(blob.n_tokens):
            return False
        head, middle, cells, (of_k, of_v) = self._headers(blob.buffer, blob.n_tokens)
        return (
            (head[0], *head[2:], *middle) == (self.magic, 1, blob.n_tokens, 0, self.n_layer)
            and bool((cells["n_seq"] == 1).all())
            and bool((of_k["type"] == _TYPE_F16).all() and (of_k["row"] == self.k_row).all())
            and bool((of_v["type"] == _TYPE_F16).all() and (of_v["row"] == self.v_row).all())
        )

    def read(self, buffer: Bytes, n_tokens: int, start: int) -> Blob:
        """The blob that llama.cpp wrote into ``buffer`` for positions ``start .. start+n_tokens-1``.

        Rows that are not in position order are sorted in place. Raises ValueError if it holds anything else.
        """
        if buffer.size != self.size(n_tokens):
            raise ValueError(f"a state of {n_tokens} tokens has {self.size(n_tokens)} bytes, not {buffer.size}")
        blob = self._blob(buffer, n_tokens)
        if not self.intact(blob):
            raise ValueError("the state has unexpected headers")
        wanted = np.arange(start, start + n_tokens, dtype=np.int32)
        if np.array_equal(blob.cells["pos"], wanted):
            return blob
        order = np.argsort(blob.cells["pos"])
        if not np.array_equal(blob.cells["pos"][order], wanted):
            raise ValueError(f"the state does not hold exactly positions {start} to {start + n_tokens - 1}")
        for rows in (blob.k, blob.v):
            rows[:] = rows[:, order]
        blob.place(start)
        return blob

    def _headers(self, buffer: Bytes, n: int) -> tuple[_Words, _Words, _Table, tuple[_Table, _Table]]:
        """Views of the words before and after the cell table, of the table, and of the layer headers of K and V."""
        k_at = _rows_at(n)
        v_at = k_at + self._part(self.k_row, n)
        return (
            np.ndarray((4,), "<u4", buffer, 0),
            np.ndarray((2,), "<u4", buffer, k_at - 8),
            np.ndarray((n,), _CELL, buffer, _HEAD),
            (
                np.ndarray((self.n_layer,), _LAYER, buffer, k_at, (_LAYER.itemsize + n * self.k_row,)),
                np.ndarray((self.n_layer,), _LAYER, buffer, v_at, (_LAYER.itemsize + n * self.v_row,)),
            ),
        )

    def _blob(self, buffer: Bytes, n: int) -> Blob:
        at = _rows_at(n)
        rows: list[F16] = []
        for row in (self.k_row, self.v_row):
            strides = (_LAYER.itemsize + n * row, row, 2)
            rows.append(np.ndarray((self.n_layer, n, row // 2), "<f2", buffer, at + _LAYER.itemsize, strides))
            at += self._part(row, n)
        return Blob(buffer, np.ndarray((n,), _CELL, buffer, _HEAD), rows[0], rows[1])


class Buffers:
    """Memory for blobs, used again and again.

    Fresh memory costs a page fault every 4 KiB: the first write to a chunk in it takes many times as long as the
    next one. So blobs of up to ``size`` bytes live in blocks that come back when the last view of them is gone; at
    most ``spare_bytes`` wait for use. Safe on any thread.
    """

    def __init__(self, size: int, spare_bytes: int) -> None:
        self._size = size
        self._most = spare_bytes // size
        self._spare: deque[mmap.mmap] = deque()

    def take(self, size: int) -> Bytes:
        """A buffer of ``size`` bytes, with anything in it."""
        if size > self._size:
            return np.empty(size, np.uint8)
        try:
            block = self._spare.pop()
        except IndexError:
            block = mmap.mmap(-1, self._size)
        # The array is what every view has as its base, because numpy looks through arrays only: its end is theirs.
        buffer: Bytes = np.frombuffer(block, np.uint8, count=size)
        weakref.finalize(buffer, self._give_back, block).atexit = False
        return buffer

    def _give_back(self, block: mmap.mmap) -> None:
        if len(self._spare) < self._most:
            self._spare.append(block)


def learn(buffer: Bytes, n_tokens: int) -> StateLayout:
    """The layout of a model, from the blob of a sequence that holds positions 0 .. n_tokens-1. Raises Unchunkable."""
    data = buffer.tobytes()
    magic, n_stream, n_cells = _u32(data, 0), _u32(data, 8), _u32(data, 12)
    if n_stream != 1 or n_cells != n_tokens:
        raise Unchunkable(f"the model's state has {n_cells} cells in {n_stream} streams for {n_tokens} tokens")
    _refuse_extras(data, n_tokens)
    at = _rows_at(n_tokens) - 8
    if _u32(data, at):
        raise Unchunkable("V is stored transposed (flash attention is off)")
    n_layer = _u32(data, at + 4)
    at, k_row = _walk(data, at + 8, n_layer, n_tokens)
    at, v_row = _walk(data, at, n_layer, n_tokens)
    if at != len(data):
        raise Unchunkable("the model's state has further sections (sliding-window or recurrent layers)")
    return StateLayout(magic, n_layer, k_row, v_row)


def _refuse_extras(data: bytes, n_tokens: int) -> None:
    """Raise Unchunkable unless cells are plain: chunks hold rows only, so extras could not be given back."""
    wanted = [np.array([pos, 1], "<i4").tobytes() for pos in range(n_tokens)]
    for extra in range(0, _MOST_EXTRA, 4):
        size = _CELL.itemsize + extra
        if [data[_HEAD + i * size :][:8] for i in range(n_tokens)] == wanted:
            if extra:
                raise Unchunkable(f"cells carry {extra} more bytes each (image positions or token ids)")
            return
    raise Unchunkable("the model's state has no table of cells")


def _walk(data: bytes, at: int, n_layer: int, n_tokens: int) -> tuple[int, int]:
    """Walk over the K (or V) rows of all layers; where they end, and the bytes of a row."""
    rows: list[int] = []
    while len(rows) < n_layer and at + _LAYER.itemsize <= len(data):
        kind, row = _u32(data, at), _u32(data, at + 4) | _u32(data, at + 8) << 32
        if kind != _TYPE_F16:
            raise Unchunkable(f"K and V are not f16 (ggml type {kind})")
        rows.append(row)
        at += _LAYER.itemsize + n_tokens * row
    if not rows or len(rows) < n_layer or at > len(data):
        raise Unchunkable("the model's state ends early: not every layer has K and V rows")
    if len(set(rows)) != 1:
        raise Unchunkable("layers have rows of different sizes")
    return at, rows[0]


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _rows_at(n_tokens: int) -> int:
    """Where the first layer header is."""
    return _HEAD + n_tokens * _CELL.itemsize + 8
