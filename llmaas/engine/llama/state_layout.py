"""The blob in which llama.cpp gives and takes the KV of one sequence, and slabs over it.

Law: bytes and numpy only, no llama_cpp. Rows of a ``Blob`` are always in position order, layers of a slab in the
model's. A blob is, in order:

    u32 magic, i32 seq
    a section (see state_blob.py) of all layers; or one of layers that see everything, then one of those with a window

With one section a slab is a view of the blob and nothing is copied. Two sections cannot be one strided array, so there
a slab has memory of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from llmaas.engine.llama.state_blob import Section, SectionRows
from llmaas.frozen import frozen
from llmaas.kv_arrays import F16, Bytes, KvSlab

_START = struct.Struct("<Ii")


class Unchunkable(Exception):
    """The state of this model cannot be cut into chunks of tokens. The message says why."""


@frozen(eq=False)
class Blob:
    """A blob's buffer with views of its sections."""

    buffer: Bytes
    parts: tuple[SectionRows, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.parts[0].cells)

    def set_positions(self, start: int) -> None:
        """Write into the blob that its rows are those of the positions from ``start`` on."""
        for part in self.parts:
            part.set_positions(start)

    def slab(self) -> KvSlab:
        """The rows as a slab, if there is one section."""
        (part,) = self.parts
        return KvSlab(part.k, part.v, owner=self)


@frozen(eq=False)
class Copied:
    """The owner of a slab that has memory of its own, in ``buffer``."""

    buffer: Bytes


@frozen
class StateLayout:
    """The layout of one model's blobs. ``layers``: the model's layer of each row, in the order of the blob."""

    magic: int
    sections: tuple[Section, ...]
    layers: tuple[int, ...]

    @property
    def copied(self) -> bool:
        """True if slabs are copies, not views of blobs."""
        return len(self.sections) > 1

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's rows."""
        return sum(section.n_layer * (section.k_row + section.v_row) for section in self.sections)

    def windows(self, n_tokens: int) -> tuple[int, ...]:
        """Tokens that each layer looks back (0: all) if those of the second section have a window of ``n_tokens``."""
        if len(self.sections) == 1:
            return (0,) * len(self.layers)
        windowed = set(self.layers[self.sections[0].n_layer :])
        return tuple(n_tokens if layer in windowed else 0 for layer in range(len(self.layers)))

    def size(self, n_tokens: int) -> int:
        """Bytes of a blob of ``n_tokens``; a slab is smaller."""
        return _START.size + sum(section.size(n_tokens) for section in self.sections)

    def blank(self, buffer: Bytes, n_tokens: int) -> Blob:
        """A blob in ``buffer`` with its headers filled in. The caller writes rows and positions."""
        _START.pack_into(buffer.data, 0, self.magic, 0)
        for section, part in self._split(buffer, n_tokens):
            section.fill(part, n_tokens)
        return self._blob(buffer, n_tokens)

    def intact(self, blob: Blob) -> bool:
        """True if nobody wrote over the headers of ``blob``."""
        n = blob.n_tokens
        return (
            blob.buffer.size == self.size(n)
            and _START.unpack_from(blob.buffer.data)[0] == self.magic
            and all(section.intact(part, n) for section, part in self._split(blob.buffer, n))
        )

    def read(self, buffer: Bytes, n_tokens: int, start: int) -> Blob:
        """The blob that llama.cpp wrote into ``buffer`` for positions ``start .. start+n_tokens-1``.

        Rows that are not in position order are sorted in place. Raises ValueError if the blob is not that.
        """
        if buffer.size != self.size(n_tokens):
            raise ValueError(f"a state of {n_tokens} tokens has {self.size(n_tokens)} bytes, not {buffer.size}")
        blob = self._blob(buffer, n_tokens)
        if not self.intact(blob):
            raise ValueError("the state has unexpected headers")
        for part in blob.parts:
            part.sort(start)
        return blob

    # -- slabs with memory of their own

    def slab(self, buffer: Bytes, n_tokens: int) -> KvSlab:
        """A slab in ``buffer``, which holds at least ``size(n_tokens)`` bytes."""
        n_layer, k_row, v_row = len(self.layers), self.sections[0].k_row, self.sections[0].v_row
        k: F16 = np.ndarray((n_layer, n_tokens, k_row // 2), np.float16, buffer)
        v: F16 = np.ndarray((n_layer, n_tokens, v_row // 2), np.float16, buffer, k.nbytes)
        return KvSlab(k, v, owner=Copied(buffer))

    def unpack(self, blob: Blob, slab: KvSlab, at: int) -> None:
        """Copy the rows of ``blob`` to the slab's tokens from ``at`` on."""
        tokens = slice(at, at + blob.n_tokens)
        for layer, k, v in self._rows(blob):
            slab.k[layer, tokens], slab.v[layer, tokens] = k, v

    def pack(self, slab: KvSlab, blob: Blob) -> None:
        """Copy the slab's rows to ``blob``, which holds as many tokens."""
        for layer, k, v in self._rows(blob):
            k[:], v[:] = slab.k[layer], slab.v[layer]

    def _rows(self, blob: Blob) -> Iterator[tuple[int, F16, F16]]:
        """The layers of ``blob`` with their K and V, in the order of the blob."""
        pairs = (pair for part in blob.parts for pair in zip(part.k, part.v, strict=True))
        for layer, (k, v) in zip(self.layers, pairs, strict=True):
            yield layer, k, v

    # -- inside

    def _split(self, buffer: Bytes, n: int) -> Iterator[tuple[Section, Bytes]]:
        """Each section with the part of ``buffer`` that begins with it."""
        *first, last = self.sections
        at = _START.size
        for section in first:
            yield section, buffer[at:]
            at += section.size(n)
        yield last, buffer[at:]

    def _blob(self, buffer: Bytes, n: int) -> Blob:
        return Blob(buffer, tuple(section.rows(part, n) for section, part in self._split(buffer, n)))
