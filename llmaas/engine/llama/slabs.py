"""Slabs out of a llama.cpp context and into it.

Law: the engine's thread only, but for ``blank``. A load that fails leaves every sequence as it was.
"""

from __future__ import annotations

from llmaas.engine.llama.buffers import Buffers
from llmaas.engine.llama.cells import SequenceCells
from llmaas.engine.llama.state_layout import Blob, Copied, StateLayout
from llmaas.errors import EngineFailed
from llmaas.records import CHUNK_TOKENS, KvSlab


class Slabs:
    """Export and load by the layout of a model's states; ``Engine`` says what they promise."""

    def __init__(self, cells: SequenceCells, layout: StateLayout, spare_bytes: int) -> None:
        self._cells, self._layout = cells, layout
        self._buffers = Buffers(layout.size(CHUNK_TOKENS), spare_bytes)

    @property
    def windows(self) -> tuple[int, ...]:
        return self._layout.windows(self._cells.window)

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        if not self._layout.copied:
            return self._read(seq, start, stop).slab()
        slab = self.blank(stop - start)
        # By chunks: of layers with a window, llama.cpp writes only the window before the last position asked for.
        at = start
        while at < stop:
            end = min(stop, at - at % CHUNK_TOKENS + CHUNK_TOKENS)
            self._layout.unpack(self._read(seq, at, end), slab, at - start)
            at = end
        return slab

    def blank(self, n_tokens: int) -> KvSlab:
        layout = self._layout
        buffer = self._buffers.take(layout.size(n_tokens))
        return layout.slab(buffer, n_tokens) if layout.copied else layout.blank(buffer, n_tokens).slab()

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        n = slab.n_tokens
        blob = self._blob(slab)
        blob.place(start)
        if not self._layout.intact(blob):
            raise EngineFailed("the slab's headers were overwritten")
        self._cells.write(seq, start, start + n, blob.buffer)

    def _read(self, seq: int, start: int, stop: int) -> Blob:
        buffer = self._buffers.take(self._layout.size(stop - start))
        self._cells.read(seq, start, stop, buffer)
        try:
            return self._layout.read(buffer, stop - start, start)
        except ValueError as error:
            raise EngineFailed(f"llama.cpp exported positions {start} .. {stop - 1} wrongly: {error}") from error

    def _blob(self, slab: KvSlab) -> Blob:
        """The blob with the slab's rows: the slab's own, or a new one."""
        owner, layout, n = slab.owner, self._layout, slab.n_tokens
        if isinstance(owner, Copied):
            blob = layout.blank(self._buffers.take(layout.size(n)), n)
            layout.pack(slab, blob)
            return blob
        if not isinstance(owner, Blob) or owner.n_tokens != n:
            raise ValueError("only a slab from blank or export can be loaded")
        return owner
