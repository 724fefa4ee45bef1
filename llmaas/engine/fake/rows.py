"""KV rows of the fake engine: a token's row stands for a 64-bit digest, and the digest can be read from the row.

Law: a row in which one sign was changed reads as another digest; a change that keeps all signs reads as the same.

The row of digest h holds the bits of h, then of mix(h, 1), mix(h, 2), ... as values -1 and +1, so that 8- and 4-bit
coding never changes a sign. A row is read by its signs: if they are the row of their own first 64 bits h, the digest is
h; if not, it is a hash of all signs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmaas.engine.rules import check_blank
from llmaas.kv_arrays import KvSlab
from llmaas.mixing import U64, mix_many
from llmaas.records import Geometry


class RowCode:
    """Slabs of one geometry. Raises ValueError for a geometry of fewer than 64 values a token."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._n_bits = geometry.n_layer * (geometry.k_dim + geometry.v_dim)
        if self._n_bits < 64:
            raise ValueError(f"a fake row needs at least 64 values a token, not {self._n_bits}")

    def blank(self, n_tokens: int) -> KvSlab:
        """A slab with anything in it. K and V are views of one buffer, as the real engine's are."""
        check_blank(n_tokens)
        g = self._geometry
        owner = np.empty((g.n_layer, n_tokens, g.k_dim + g.v_dim), np.float16)
        return KvSlab(owner[:, :, : g.k_dim], owner[:, :, g.k_dim :], owner=owner)

    def encode(self, digests: Sequence[int]) -> KvSlab:
        """A slab with the rows of ``digests``, one token each."""
        values = self._bits(np.array(digests, np.uint64)).astype(np.float16) * np.float16(2) - np.float16(1)
        slab = self.blank(len(digests))
        g = self._geometry
        n_k = g.n_layer * g.k_dim
        slab.k[:] = values[:, :n_k].reshape(-1, g.n_layer, g.k_dim).swapaxes(0, 1)
        slab.v[:] = values[:, n_k:].reshape(-1, g.n_layer, g.v_dim).swapaxes(0, 1)
        return slab

    def check_shape(self, slab: KvSlab) -> None:
        """Raise ValueError for a slab of another geometry."""
        g, n = self._geometry, slab.n_tokens
        if slab.k.shape != (g.n_layer, n, g.k_dim) or slab.v.shape != (g.n_layer, n, g.v_dim):
            raise ValueError("only a slab from blank or export can be loaded")

    def decode(self, slab: KvSlab) -> list[int]:
        """The digests that the slab's rows stand for."""
        parts = (part.swapaxes(0, 1).reshape(slab.n_tokens, -1) > 0 for part in (slab.k, slab.v))
        signs = np.concatenate(list(parts), axis=1)
        packed = np.packbits(signs, axis=1)
        first: U64 = np.ascontiguousarray(packed[:, :8]).view("<u8")[:, 0]
        sound = (self._bits(first) == signs).all(axis=1)
        return [
            int(h) if ok else int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
            for h, ok, row in zip(first, sound, packed, strict=True)
        ]

    def _bits(self, digests: U64) -> npt.NDArray[np.uint8]:
        """The rows of ``digests`` as bits, shape (n, n_bits)."""
        words = mix_many(digests, -(-self._n_bits // 64))
        words[:, 0] = digests
        return np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, count=self._n_bits)
