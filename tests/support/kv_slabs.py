"""Slabs, geometries and chunks for tests of the codec."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import F16, KvSlab, Rope
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.codec.planes import rotation_size
from llmaas.records import ChunkKey, Geometry, Precision

F64 = npt.NDArray[np.float64]
KEY = ChunkKey(bytes(range(16)))
OTHER_KEY = ChunkKey(bytes(16))
SMALL = Geometry(n_layer=2, k_dim=64, v_dim=64, head_dim_k=32, head_dim_v=32)
BITS = (16, 8, 6, 5, 4, 3, 2)
CODED = pytest.mark.parametrize("bits", BITS[1:])
PRECISIONS = st.builds(Precision, st.sampled_from(BITS), st.sampled_from(BITS))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    heads, k, v = draw(st.integers(1, 3)), *(draw(st.sampled_from([16, 24, 64, 80, 96, 128, 256])) for _ in "kv")
    return Geometry(draw(st.integers(1, 3)), heads * k, heads * v, k, v)


@st.composite
def ropes(draw: st.DrawFn, g: Geometry) -> Rope | None:
    pairs = draw(st.sampled_from([0, 0, g.head_dim_k // 2, g.head_dim_k // 4]))
    base = draw(st.sampled_from([1e4, 1e6]))
    angles = np.tile(base ** -(np.arange(pairs) / max(1, pairs)), (g.n_layer, 1)).astype(np.float32)
    angles[1:] *= draw(st.sampled_from([1.0, 0.5]))
    return Rope(angles, draw(st.booleans())) if pairs else None


TOKENS = st.integers(1, 130) | st.sampled_from([1, 31, 32, 33, 64, 100, 257])


def like_a_state_blob(n_layer: int, n_tokens: int, dim: int) -> F16:
    """A view as llama.cpp's state blob gives it: rows dense, 12 bytes of something else between layers."""
    stride = 2 * n_tokens * dim + 12
    buffer = np.full(4 + n_layer * stride, 0xA5, np.uint8)
    return np.ndarray((n_layer, n_tokens, dim), np.float16, buffer, 4, (stride, 2 * dim, 2))


def blank(g: Geometry, n_tokens: int) -> KvSlab:
    return KvSlab(like_a_state_blob(g.n_layer, n_tokens, g.k_dim), like_a_state_blob(g.n_layer, n_tokens, g.v_dim))


def random_slab(g: Geometry, n_tokens: int, seed: int, scale: float = 1.0) -> KvSlab:
    """Normal values, with large channels in K and large tokens in V, as real models have."""
    rng = np.random.default_rng(seed)
    slab = blank(g, n_tokens)
    slab.k[...] = rng.standard_normal(slab.k.shape) * scale + rng.standard_normal(g.k_dim) * 4 * scale
    slab.v[...] = rng.standard_normal(slab.v.shape) * scale * rng.exponential(1, (1, n_tokens, 1))
    return slab


def hadamard(size: int) -> F64:
    """The orthonormal Hadamard matrix in closed form: signs are the parity of the bits that row and column share."""
    parity = [[bin(row & column).count("1") % 2 for column in range(size)] for row in range(size)]
    return (1 - 2.0 * np.array(parity)) / math.sqrt(size)


def rotated(v: F16, head_dim: int) -> F64:
    block = rotation_size(head_dim)
    return (v.astype(np.float64).reshape(-1, block) @ hadamard(block)).reshape(v.shape)


def same_bits(a: KvSlab, b: KvSlab) -> bool:
    pairs = ((a.k, b.k), (a.v, b.v))
    return all(np.array_equal(x.view(np.uint16), y.view(np.uint16)) for x, y in pairs)


def decoded(codec: Codec, payload: bytes | bytearray | memoryview, n_tokens: int, key: ChunkKey = KEY) -> KvSlab:
    into = blank(codec.geometry, n_tokens)
    codec.decode(payload, key, into)
    return into


def refused(codec: Codec, payload: bytes | bytearray, n_tokens: int = 40, key: ChunkKey = KEY) -> str:
    """Decode what must be refused with the slab untouched; the message."""
    into = blank(codec.geometry, n_tokens)
    before = into.k.copy(), into.v.copy()
    with pytest.raises(ChunkDamaged) as caught:
        codec.decode(payload, key, into)
    assert same_bits(into, KvSlab(*before))
    return caught.value.message
