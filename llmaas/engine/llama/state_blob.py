"""A section of a llama.cpp state: the KV of some layers, as numpy views.

Law: bytes and numpy only, no llama_cpp. A section of n tokens is, in order:

    u32 n_stream = 1, u32 n_cells
    n_cells x (i32 pos, u32 n_seq = 1, [extra], i32 seq)
    u32 v_trans = 0, u32 n_layer
    n_layer x (i32 type, u64 row_bytes, n_cells rows)     K
    n_layer x (i32 type, u64 row_bytes, n_cells rows)     V

llama.cpp writes rows in the order of its cells. If the free cells were scattered when the tokens came, that is not the
order of positions: ``SectionRows.sort`` restores it.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from llmaas.frozen import frozen
from llmaas.kv_arrays import F16, Bytes

_Table = npt.NDArray[np.void]

CELL = np.dtype([("pos", "<i4"), ("n_seq", "<u4"), ("seq", "<i4")])
LAYER = np.dtype([("type", "<i4"), ("row", "<u8")])
HEAD = 8
_WORDS = struct.Struct("<II")
TYPE_F16 = 1


@frozen(eq=False)
class SectionRows:
    """Views of a section: ``cells`` (n) of dtype CELL, ``k`` (n_layer, n, k_dim), ``v`` (n_layer, n, v_dim)."""

    cells: npt.NDArray[np.void]
    k: F16
    v: F16

    def set_positions(self, start: int) -> None:
        """Write into the table of cells that the rows are those of the positions from ``start`` on."""
        self.cells["pos"] = np.arange(start, start + len(self.cells), dtype=np.int32)

    def sort(self, start: int) -> None:
        """Sort the rows by position. Raises ValueError unless they are those of the n positions from ``start`` on."""
        wanted = np.arange(start, start + len(self.cells), dtype=np.int32)
        if np.array_equal(self.cells["pos"], wanted):
            return
        order = np.argsort(self.cells["pos"])
        if not np.array_equal(self.cells["pos"][order], wanted):
            raise ValueError(f"the state does not hold exactly positions {start} to {start + len(wanted) - 1}")
        for rows in (self.k, self.v):
            rows[:] = rows[:, order]
        self.set_positions(start)


@frozen
class Section:
    """The layout of a section. ``k_row`` and ``v_row``: bytes of a token's row in one layer."""

    n_layer: int
    k_row: int
    v_row: int

    def size(self, n_tokens: int) -> int:
        """Bytes of the section for ``n_tokens``."""
        return rows_at(n_tokens) + self._part(self.k_row, n_tokens) + self._part(self.v_row, n_tokens)

    def rows(self, buffer: Bytes, n: int) -> SectionRows:
        """Views of a section of ``n`` tokens that fills ``buffer``."""
        at = rows_at(n)
        found: list[F16] = []
        for row in (self.k_row, self.v_row):
            strides = (LAYER.itemsize + n * row, row, 2)
            found.append(np.ndarray((self.n_layer, n, row // 2), "<f2", buffer, at + LAYER.itemsize, strides))
            at += self._part(row, n)
        return SectionRows(np.ndarray((n,), CELL, buffer, HEAD), found[0], found[1])

    def fill(self, buffer: Bytes, n: int) -> None:
        """Write the headers of a section of ``n`` tokens. The caller writes rows and positions."""
        _WORDS.pack_into(buffer.data, 0, 1, n)
        _WORDS.pack_into(buffer.data, rows_at(n) - 8, 0, self.n_layer)
        cells, layers = self._tables(buffer, n)
        cells["n_seq"], cells["seq"] = 1, 0  # llama.cpp reads and ignores the sequence
        for table, row in zip(layers, (self.k_row, self.v_row), strict=True):
            table["type"], table["row"] = TYPE_F16, row

    def intact(self, buffer: Bytes, n: int) -> bool:
        """True if ``buffer`` has the headers of a section of ``n`` tokens."""
        cells, (of_k, of_v) = self._tables(buffer, n)
        return (
            _WORDS.unpack_from(buffer.data) == (1, n)
            and _WORDS.unpack_from(buffer.data, rows_at(n) - 8) == (0, self.n_layer)
            and bool((cells["n_seq"] == 1).all())
            and bool((of_k["type"] == TYPE_F16).all() and (of_k["row"] == self.k_row).all())
            and bool((of_v["type"] == TYPE_F16).all() and (of_v["row"] == self.v_row).all())
        )

    def _part(self, row: int, n_tokens: int) -> int:
        return self.n_layer * (LAYER.itemsize + n_tokens * row)

    def _tables(self, buffer: Bytes, n: int) -> tuple[_Table, tuple[_Table, _Table]]:
        """Views of the table of cells, and of the layer headers of K and of V."""
        k_at = rows_at(n)
        v_at = k_at + self._part(self.k_row, n)
        return (
            np.ndarray((n,), CELL, buffer, HEAD),
            (
                np.ndarray((self.n_layer,), LAYER, buffer, k_at, (LAYER.itemsize + n * self.k_row,)),
                np.ndarray((self.n_layer,), LAYER, buffer, v_at, (LAYER.itemsize + n * self.v_row,)),
            ),
        )


def rows_at(n_tokens: int) -> int:
    """The offset of the first layer header in a section of ``n_tokens``."""
    return HEAD + n_tokens * CELL.itemsize + 8
