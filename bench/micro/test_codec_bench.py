"""How long a full 64-token chunk of SmolLM2-135M takes to code and decode, and how many bits a value really costs.

Run: ``pytest bench/micro/test_codec_bench.py``; single-threaded by construction. A 4096-token context is 64 of these.
"""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from llmaas.kv_arrays import F16, KvSlab
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.codec.kernels import available
from llmaas.kvchunks.keys import chunk_keys, namespace
from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey, Geometry, Precision

SMOLLM2 = Geometry(n_layer=30, k_dim=192, v_dim=192, head_dim_k=64, head_dim_v=64)
KEY = ChunkKey(bytes(16))
BITS = pytest.mark.parametrize(
    "precision", [Precision(b, b) for b in (16, 8, 6, 5, 4, 3, 2)], ids=lambda p: f"k{p.k}v{p.v}"
)
KERNELS = pytest.mark.parametrize(
    "codec", [Codec(SMOLLM2, kernels=k) for k in available()], ids=[k.name for k in available()]
)


def blob_view(dim: int) -> F16:
    """A plane with the strides of llama.cpp's state blob: 12 bytes between layers."""
    stride = 2 * CHUNK_TOKENS * dim + 12
    buffer = np.zeros(4 + SMOLLM2.n_layer * stride, np.uint8)
    return np.ndarray((SMOLLM2.n_layer, CHUNK_TOKENS, dim), np.float16, buffer, 4, (stride, 2 * dim, 2))


def slab(seed: int) -> KvSlab:
    rng, made = np.random.default_rng(seed), KvSlab(blob_view(SMOLLM2.k_dim), blob_view(SMOLLM2.v_dim))
    made.k[...] = rng.standard_normal(made.k.shape)
    made.v[...] = rng.standard_normal(made.v.shape)
    return made


@KERNELS
@BITS
def test_encode_a_chunk(benchmark: BenchmarkFixture, codec: Codec, precision: Precision) -> None:
    payload = benchmark(codec.encode, slab(0), precision, KEY)
    values = SMOLLM2.n_layer * CHUNK_TOKENS * (SMOLLM2.k_dim + SMOLLM2.v_dim)
    benchmark.extra_info["bits_per_value"] = 8 * len(payload) / values
    assert len(payload) == codec.encoded_size(CHUNK_TOKENS, precision)


@KERNELS
@BITS
def test_decode_a_chunk(benchmark: BenchmarkFixture, codec: Codec, precision: Precision) -> None:
    source, into = slab(1), slab(2)
    payload = codec.encode(source, precision, KEY)
    benchmark(codec.decode, payload, KEY, into)
    assert np.abs(into.k.astype(np.float32) - source.k).max() < 3


@pytest.mark.parametrize("known", [0, 63])
def test_name_the_chunks_of_a_4096_token_context(benchmark: BenchmarkFixture, known: int) -> None:
    tokens, root = array("i", range(4096)), namespace(AppId("1000/bench"), "fingerprint")
    keys = chunk_keys(root, tokens)
    assert benchmark(chunk_keys, root, tokens, known=keys[:known]) == keys
