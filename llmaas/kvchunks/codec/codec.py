"""Encodes the KV slab of a chunk to bytes at a precision, and decodes it.

Law: pure; knows no files. What ``encode`` makes, ``decode`` returns (bit-exact at 16 bits) or refuses with ChunkDamaged
before it has written a single value. A coded chunk is a 64-byte header (``header``), the K section, then the V section
(``planes``). Little-endian machines only, like ggml itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import F32, KvSlab, Rope
from llmaas.kvchunks.codec.header import HEADER_BYTES, ChunkHeader, CodedChunk, check, read_header, write_header
from llmaas.kvchunks.codec.kernels import Kernels, best
from llmaas.kvchunks.codec.kernels_channels import BadWords, RopeRotation
from llmaas.kvchunks.codec.planes import ChannelPlane, RotatedPlane, rope_rotation, rotation_size
from llmaas.kvchunks.codec.whole_chunks import CODINGS, RAW, ChunkForm, Placed, SoundChunk, body_bytes
from llmaas.records import ChunkKey, Geometry, Precision

__all__ = ["SINKS", "ChunkHeader", "Codec", "CodedChunk", "SoundChunk", "check", "read_header", "sinks_at"]


SINKS = 1
"""Tokens at the beginning of a context that are kept exactly. They are attention sinks (StreamingLLM, arXiv
2309.17453): attention that has no other target goes there. Their keys are so large that they would coarsen the steps of
the whole chunk."""


def sinks_at(start: int) -> int:
    """Tokens to keep exactly at the beginning of a chunk that begins at position ``start``."""
    return SINKS if start == 0 else 0


class Codec:
    """Codes chunks of one geometry. Safe to share between threads; the heavy parts run without the GIL.

    K and V each have 16 bits (raw f16), 8, 6, 5, 4, 3 or 2.

    >>> codec = Codec(Geometry(n_layer=2, k_dim=64, v_dim=64, head_dim_k=32, head_dim_v=32))
    >>> rng = np.random.default_rng(0)
    >>> slab = KvSlab(*(rng.standard_normal((2, 64, 64)).astype(np.float16) for _ in "kv"))
    >>> key = ChunkKey(bytes(16))
    >>> coded = codec.encode(slab, Precision(4, 4), key)
    >>> len(coded) == codec.encoded_size(64, Precision(4, 4)), round((slab.k.nbytes + slab.v.nbytes) / len(coded), 1)
    (True, 3.6)
    >>> bool(np.abs(codec.decoded(coded, key).k - slab.k).max() < 0.3)
    True
    >>> exact = codec.decoded(codec.encode(slab, Precision(16, 16), key), key)
    >>> np.array_equal(exact.k, slab.k) and np.array_equal(exact.v, slab.v)
    True
    """

    def __init__(self, geometry: Geometry, rope: Rope | None = None, *, kernels: Kernels | None = None) -> None:
        """``rope``: how the model rotates keys; they are coded un-rotated. ``kernels``: ``kernels.NUMPY`` for the
        oracle, None for the fastest that this machine has.
        """
        self._kernels = kernels = kernels or best()
        self.geometry = geometry
        rotation = rope_rotation(rope, geometry.head_dim_k) if rope is not None else None
        self._rope_id = _rope_id(rotation)
        self._k = ChannelPlane(geometry.n_layer, geometry.k_dim, rotation, kernels)
        self._v = RotatedPlane(geometry.n_layer, geometry.v_dim, geometry.head_dim_v, kernels)
        self._form = ChunkForm(rotation, rotation_size(geometry.head_dim_v))

    def set_key_weights(self, weights: F32 | None) -> None:
        """From now on, allocate the bits of a layer's keys by range times weight; None: by range alone.

        ``weights`` (n_layer, k_dim) must be positive. The best weight of a channel is the root mean square of the
        queries there, since the error of a key changes q.k by q times as much. What was coded with other weights can
        still be decoded. Raises ValueError for another shape or a weight that is not positive and finite.
        """
        g = self.geometry
        if weights is None:
            weights = np.ones((g.n_layer, g.k_dim), np.float32)
        if weights.shape != (g.n_layer, g.k_dim):
            raise ValueError(f"weights have the shape {weights.shape}, not {(g.n_layer, g.k_dim)}")
        if not (weights > 0).all() or not np.isfinite(weights).all():
            raise ValueError("weights must be positive and finite")
        # Scaled to a mean of 1 and clipped, so that no product with a range overflows or vanishes. Only the ratios
        # within a layer matter.
        weights = weights / weights.mean(axis=1, keepdims=True)
        self._k.weights = np.ascontiguousarray(np.clip(weights, 2.0**-20, 2.0**20), np.float32)

    def encoded_size(self, n_tokens: int, precision: Precision, sinks: int = 0) -> int:
        """Bytes that ``encode`` makes of ``n_tokens`` tokens: exact for every slab of ordinary values.

        A tensor that groups cannot hold is stored raw instead, and the coded chunk is larger: inf, NaN, a magnitude
        above 8192 in K, or in V above 16384 divided by the square root of the rotation size. It never exceeds
        ``encoded_size(n_tokens, LOSSLESS)``. So reserve this size, and settle the account with the length of the coded
        chunk. Raises ValueError for bits without a coding.
        """
        k, v = self._codings(n_tokens, precision, sinks)
        return HEADER_BYTES + self._k.size(k, n_tokens, sinks) + self._v.size(v, n_tokens, sinks)

    def is_finite(self, slab: KvSlab) -> bool:
        """Whether all of ``slab`` is numbers: no infinity, no NaN."""
        return self._k.finite(slab.k) and self._v.finite(slab.v)

    def encode(self, slab: KvSlab, precision: Precision, key: ChunkKey, sinks: int = 0) -> bytearray:
        """Code ``slab``, which has at least one token and may be strided; its first ``sinks`` tokens are kept exactly.

        Equal slabs give equal bytes, as long as the weights are the same. Raises ValueError for a slab of another
        geometry, bits without a coding, sinks outside 0 .. 255, or a key that has not 16 bytes.
        """
        n_tokens = self._tokens(slab)
        k, v = self._codings(n_tokens, precision, sinks)
        if k != RAW and not self._k.codable(slab.k):
            k = RAW
        if v != RAW and not self._v.codable(slab.v):
            v = RAW
        k_bytes, v_bytes = self._k.size(k, n_tokens, sinks), self._v.size(v, n_tokens, sinks)
        payload = bytearray(HEADER_BYTES + k_bytes + v_bytes)
        body = np.frombuffer(payload, np.uint8, offset=HEADER_BYTES)
        self._k.encode(slab.k, body[:k_bytes], k, sinks)
        self._v.encode(slab.v, body[k_bytes:], v, sinks)
        write_header(
            payload,
            precision=precision,
            codings=(k, v),
            sinks=sinks,
            rope_id=self._rope_id,
            key=key,
            n_tokens=n_tokens,
            geometry=self.geometry,
        )
        return payload

    def decode(self, payload: CodedChunk, key: ChunkKey, into: KvSlab) -> None:
        """Decode into ``into``, which has the chunk's token count and may be strided.

        Raises ChunkDamaged, with ``into`` untouched, if ``payload`` is not exactly the chunk ``key`` with this geometry
        and token count; ValueError if ``into`` itself has another geometry.
        """
        chunk = self.sound(payload, key, self._tokens(into))
        if damaged := self.decode_sound([(chunk, 0)], into):
            raise damaged[0]

    def sound(self, payload: CodedChunk, key: ChunkKey, n_tokens: int) -> SoundChunk:
        """The chunk, ready for ``decode_sound``. Raises ChunkDamaged if ``payload`` is not exactly the chunk ``key``
        with this geometry and token count.
        """
        found = check(payload, key)
        if found.geometry != self.geometry:
            raise ChunkDamaged(f"chunk has {found.geometry}, the model has {self.geometry}")
        if found.n_tokens != n_tokens:
            raise ChunkDamaged(f"chunk has {found.n_tokens} tokens, {n_tokens} were expected")
        if found.rope_id != self._rope_id and found.k_coding != RAW:
            raise ChunkDamaged("chunk's keys were un-rotated with another RoPE than this model has")
        k, v, sinks = found.k_coding, found.v_coding, found.sinks
        if k not in CODINGS or v not in CODINGS:
            raise ChunkDamaged(f"chunk is coded in an unknown way: K {k}, V {v}")
        g = self.geometry
        k_bytes, v_bytes = body_bytes((g.n_layer, g.k_dim, g.v_dim), n_tokens, k, v, sinks)
        if found.body_bytes != k_bytes + v_bytes:
            raise ChunkDamaged(f"chunk has {found.body_bytes} body bytes, its shape needs {k_bytes + v_bytes}")
        return SoundChunk(np.frombuffer(payload, np.uint8, offset=HEADER_BYTES), n_tokens, k, v, sinks, k_bytes)

    def decode_sound(self, chunks: Sequence[Placed], slab: KvSlab) -> dict[int, ChunkDamaged]:
        """Decode each of some chunks into its tokens of ``slab``: as ``decode``, with one call into C for all of them.

        Returns what is wrong with those, by number, that are damaged after all; their tokens are untouched. Raises
        ValueError if the slab has another geometry, or a chunk has no room there.
        """
        self._tokens(slab)
        bad = self._kernels.decode_chunks(self._form, chunks, slab)
        return {number: ChunkDamaged(str(BadWords())) for number in bad}

    def decoded(self, payload: CodedChunk, key: ChunkKey) -> KvSlab:
        """The chunk in a new, dense slab. Raises ChunkDamaged as ``decode`` does."""
        g, n_tokens = self.geometry, check(payload, key).n_tokens
        slab = KvSlab(
            np.empty((g.n_layer, n_tokens, g.k_dim), np.float16), np.empty((g.n_layer, n_tokens, g.v_dim), np.float16)
        )
        self.decode(payload, key, slab)
        return slab

    def lower(self, payload: CodedChunk, precision: Precision, key: ChunkKey) -> bytearray:
        """Code a coded chunk again at a lower precision, from its decoded values; sinks stay exact.

        Errors add up. So each time K or V should lose at least one bit: then the old squared error is a quarter of the
        new one. Raises ChunkDamaged as ``decode`` does.
        """
        return self.encode(self.decoded(payload, key), precision, key, check(payload, key).sinks)

    def _codings(self, n_tokens: int, precision: Precision, sinks: int) -> tuple[int, int]:
        if n_tokens < 1:
            raise ValueError("a chunk has at least one token")
        if not 0 <= sinks <= 255:
            raise ValueError(f"a chunk keeps 0 .. 255 tokens exactly, not {sinks}")
        return self._k.coding(precision.k, n_tokens, sinks), self._v.coding(precision.v, n_tokens, sinks)

    def _tokens(self, slab: KvSlab) -> int:
        """The token count of a slab of this geometry; raises ValueError for another shape or type."""
        n_tokens, g = slab.n_tokens, self.geometry
        if slab.k.shape != (g.n_layer, n_tokens, g.k_dim) or slab.v.shape != (g.n_layer, n_tokens, g.v_dim):
            raise ValueError(f"slab of shapes {slab.k.shape}, {slab.v.shape} does not fit {g}")
        if slab.k.dtype != np.float16 or slab.v.dtype != np.float16:
            raise ValueError(f"slab must be float16, not {slab.k.dtype}, {slab.v.dtype}")
        return n_tokens


def _rope_id(rotation: RopeRotation | None) -> int:
    """One byte that names a rotation in the header: 1 .. 255, or 0 for none."""
    if rotation is None:
        return 0
    return 1 + zlib.crc32(rotation.table.tobytes() + rotation.kind.tobytes()) % 255
