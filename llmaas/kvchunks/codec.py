"""F3. KV slab <-> bytes at a precision.

Law: pure; knows no files. What ``encode`` makes, ``decode`` gives back (bit-exact at 16 bits) or refuses with
ChunkDamaged before it has written a single value. A payload is a 64-byte header (``codec_header``), the K
section, the V section (``codec_planes``). Little-endian machines only, like ggml itself.
"""

from __future__ import annotations

import numpy as np

from llmaas.errors import ChunkDamaged
from llmaas.kvchunks.codec_header import HEADER_BYTES, ChunkHeader, Payload, check, header, seal
from llmaas.kvchunks.codec_planes import RAW, ChannelPlane, RotatedPlane
from llmaas.kvchunks.kernels import Kernels, best
from llmaas.records import ChunkKey, Geometry, KvSlab, Precision

__all__ = ["ChunkHeader", "Codec", "Payload", "check", "header"]


class Codec:
    """Codes chunks of one geometry. Safe to share between threads; the heavy parts run without the GIL.

    Bits that can be asked for, for K and V apart: 16 (raw f16), 8, 6, 5, 4, 3 and 2.
    """

    def __init__(self, geometry: Geometry, kernels: Kernels | None = None) -> None:
        """``kernels``: ``kernels.NUMPY`` for the oracle; None for the fastest that this machine has."""
        kernels = kernels or best()
        self.geometry = geometry
        self._k = ChannelPlane(geometry.n_layer, geometry.k_dim, kernels)
        self._v = RotatedPlane(geometry.n_layer, geometry.v_dim, geometry.head_dim_v, kernels)

    def encoded_size(self, n_tokens: int, precision: Precision) -> int:
        """Bytes that ``encode`` will make of ``n_tokens`` tokens, exactly, for every slab of ordinary values.

        A tensor that groups cannot hold (inf, NaN, a magnitude above 32768 in K, or in V above 16384 divided by the
        square root of the rotation size) is stored raw instead, and the payload is larger; it never exceeds
        ``encoded_size(n_tokens, LOSSLESS)``. So reserve this size, and settle the account with ``len(payload)``.
        Raises ValueError for bits without a coding.
        """
        k, v = self._codings(n_tokens, precision)
        return HEADER_BYTES + self._k.size(k, n_tokens) + self._v.size(v, n_tokens)

    def encode(self, slab: KvSlab, precision: Precision, key: ChunkKey) -> bytearray:
        """Code ``slab`` (at least one token; strided views will do). Equal slabs give equal bytes.

        Raises ValueError for a slab of another geometry, bits without a coding, or a key that has not 16 bytes.
        """
        n_tokens = self._tokens(slab)
        k, v = self._codings(n_tokens, precision)
        if k != RAW and not self._k.codable(slab.k):
            k = RAW
        if v != RAW and not self._v.codable(slab.v):
            v = RAW
        k_bytes, v_bytes = self._k.size(k, n_tokens), self._v.size(v, n_tokens)
        payload = bytearray(HEADER_BYTES + k_bytes + v_bytes)
        body = np.frombuffer(payload, np.uint8, offset=HEADER_BYTES)
        self._k.encode(slab.k, body[:k_bytes], k)
        self._v.encode(slab.v, body[k_bytes:], v)
        seal(payload, precision=precision, codings=(k, v), key=key, n_tokens=n_tokens, geometry=self.geometry)
        return payload

    def decode(self, payload: Payload, key: ChunkKey, into: KvSlab) -> None:
        """Decode into ``into.k`` and ``into.v`` (strided views will do); its token count must be the chunk's.

        Raises ChunkDamaged, with ``into`` untouched, if the payload is not exactly the chunk ``key`` in this
        geometry and token count; ValueError if ``into`` itself has another geometry.
        """
        n_tokens = self._tokens(into)
        found = check(payload, key)
        if found.geometry != self.geometry:
            raise ChunkDamaged(f"chunk has {found.geometry}, the model has {self.geometry}")
        if found.n_tokens != n_tokens:
            raise ChunkDamaged(f"chunk has {found.n_tokens} tokens, {n_tokens} were expected")
        k, v = found.k_coding, found.v_coding
        try:
            k_bytes, v_bytes = self._k.size(k, n_tokens), self._v.size(v, n_tokens)
        except KeyError as error:
            raise ChunkDamaged(f"chunk is coded in an unknown way: K {k}, V {v}") from error
        if found.body_bytes != k_bytes + v_bytes:
            raise ChunkDamaged(f"chunk has {found.body_bytes} body bytes, its shape needs {k_bytes + v_bytes}")
        body = np.frombuffer(payload, np.uint8, offset=HEADER_BYTES)
        self._k.decode(body[:k_bytes], into.k, k)
        self._v.decode(body[k_bytes:], into.v, v)

    def _codings(self, n_tokens: int, precision: Precision) -> tuple[int, int]:
        if n_tokens < 1:
            raise ValueError("a chunk has at least one token")
        return self._k.coding(precision.k, n_tokens), self._v.coding(precision.v, n_tokens)

    def _tokens(self, slab: KvSlab) -> int:
        n_tokens, g = slab.n_tokens, self.geometry
        if slab.k.shape != (g.n_layer, n_tokens, g.k_dim) or slab.v.shape != (g.n_layer, n_tokens, g.v_dim):
            raise ValueError(f"slab of shapes {slab.k.shape}, {slab.v.shape} does not fit {g}")
        if slab.k.dtype != np.float16 or slab.v.dtype != np.float16:
            raise ValueError(f"slab must be float16, not {slab.k.dtype}, {slab.v.dtype}")
        return n_tokens
