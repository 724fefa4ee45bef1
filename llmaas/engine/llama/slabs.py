"""Slabs of KV: exported from a llama.cpp context and loaded into it.

Law: the engine's thread only, except ``blank``. A load that fails leaves every sequence as it was.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import numpy as np

from llmaas.engine.base import CellsFull, tokens_per_load
from llmaas.engine.llama.buffers import Buffers
from llmaas.engine.llama.cell_rows import available, slabs_in_cells, untouched
from llmaas.engine.llama.cells import SequenceCells
from llmaas.engine.llama.state_layout import Blob, Copied, StateLayout
from llmaas.errors import EngineFailed
from llmaas.kv_arrays import F16, KvSlab
from llmaas.records import CHUNK_TOKENS

_INFINITY = 0x7C00
"""As an f16 bit pattern; those of NaN are larger."""
_SIGN = 0x8000


class Slabs:
    """``export``, ``blank`` and ``load`` of ``Engine``, for states of one layout. The caller checks arguments."""

    def __init__(self, cells: SequenceCells, layout: StateLayout, spare_bytes: int) -> None:
        self._cells, self._layout = cells, layout
        self.in_place = available() and not layout.copied
        """Whether ``begin_load`` may find cells."""
        self._buffers = Buffers(layout.size(tokens_per_load(layout.token_bytes)), spare_bytes)

    @property
    def windows(self) -> tuple[int, ...]:
        """See ``Engine.windows``."""
        return self._layout.windows(self._cells.window)

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        """See ``Engine.export``."""
        if not self._layout.copied:
            return self._read(seq, start, stop).slab()
        slab = self.blank(stop - start)
        # By chunks, because of layers with a window llama.cpp writes only the window that ends at the last position.
        at = start
        while at < stop:
            end = min(stop, at - at % CHUNK_TOKENS + CHUNK_TOKENS)
            self._layout.unpack(self._read(seq, at, end), slab, at - start)
            at = end
        return slab

    def blank(self, n_tokens: int) -> KvSlab:
        """See ``Engine.blank``."""
        layout = self._layout
        buffer = self._buffers.take(layout.size(n_tokens))
        return layout.slab(buffer, n_tokens) if layout.copied else layout.blank(buffer, n_tokens).slab()

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        """See ``Engine.load``."""
        n = slab.n_tokens
        blob = self._blob(slab)
        blob.set_positions(start)
        if not self._layout.intact(blob):
            raise EngineFailed("the slab's headers were overwritten")
        self._cells.write(seq, start, start + n, blob.buffer)

    def begin_load(self, seq: int, start: int, n_tokens: int) -> list[KvSlab] | None:
        """See ``Engine.begin_load``. None where layers lie in two sections, or free cells in too many places."""
        if not self.in_place:
            return None
        blob = self._layout.blank(untouched(self._layout.size(n_tokens)), n_tokens)
        blob.set_positions(start)
        return self._cells.begin_write(seq, start, start + n_tokens, blob.buffer, partial(slabs_in_cells, blob))

    def is_finite(self, seq: int, start: int, stop: int) -> bool:
        """Whether positions start .. stop-1 hold neither NaN nor infinity. Takes 5 us a token of a small model."""
        # By chunks: a prefill's step is hundreds of tokens, and a copy of all their rows tens of megabytes.
        for at in range(start, stop, CHUNK_TOKENS):
            slab = self.export(seq, at, min(stop, at + CHUNK_TOKENS))
            if not (_is_finite(slab.k) and _is_finite(slab.v)):
                return False
        return True

    def scrub(self, seq: int) -> None:
        """Overwrite what free cells hold with zeros, through sequence ``seq``, which stays as it is.

        Cells that are masked out are not read, but computed with: a NaN in any of them would make NaN of others.
        """
        begin = start = self._cells.lengths[seq]
        for n in (CHUNK_TOKENS, 1):
            slab = self.blank(n)
            slab.k[:] = slab.v[:] = 0.0
            with suppress(CellsFull):
                while True:
                    self.load(seq, start, slab)
                    start += n
        self._cells.truncate(seq, begin)

    def _read(self, seq: int, start: int, stop: int) -> Blob:
        """The state of these positions as llama.cpp writes it, rows sorted by position. Raises EngineFailed."""
        buffer = self._buffers.take(self._layout.size(stop - start))
        self._cells.read(seq, start, stop, buffer)
        try:
            return self._layout.read(buffer, stop - start, start)
        except ValueError as error:
            raise EngineFailed(f"llama.cpp exported positions {start} .. {stop - 1} wrongly: {error}") from error

    def _blob(self, slab: KvSlab) -> Blob:
        """A blob with the slab's rows: the one that the slab is a view of, or a new one that they are copied to."""
        owner, layout, n = slab.owner, self._layout, slab.n_tokens
        if isinstance(owner, Copied):
            blob = layout.blank(self._buffers.take(layout.size(n)), n)
            layout.pack(slab, blob)
            return blob
        if not isinstance(owner, Blob) or owner.n_tokens != n:
            raise ValueError("only a slab from blank or export can be loaded")
        return owner


def _is_finite(x: F16) -> bool:
    """Whether no element is NaN or infinity. Makes no array: of negative ones the bits as an unsigned number tell."""
    return int(x.view(np.int16).max()) < _INFINITY and int(x.view(np.uint16).max()) < _SIGN + _INFINITY
