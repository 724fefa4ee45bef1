"""The codec: exact at 16 bits, within the quantisation step below, and blind to strides and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, read_header
from llmaas.kvchunks.codec.kernels import NUMPY, Kernels, available
from llmaas.records import LOSSLESS, ChunkKey, Geometry, Precision
from tests.support.kv_slabs import (
    BITS,
    CODED,
    F64,
    KEY,
    OTHER_KEY,
    PRECISIONS,
    SMALL,
    TOKENS,
    blank,
    decoded,
    geometries,
    random_slab,
    ropes,
    rotated,
    same_bits,
)

# -- round trips -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(geometries(), TOKENS, st.integers(0, 2**32))
def test_at_16_bits_every_pattern_comes_back_nan_and_inf_too(g: Geometry, n_tokens: int, seed: int) -> None:
    rng, slab = np.random.default_rng(seed), blank(g, n_tokens)
    for plane in (slab.k, slab.v):
        plane.view(np.uint16)[...] = rng.integers(0, 1 << 16, plane.shape, np.uint16)
    codec = Codec(g)
    payload = codec.encode(slab, LOSSLESS, KEY)
    assert same_bits(decoded(codec, payload, n_tokens), slab)
    assert len(payload) == codec.encoded_size(n_tokens, LOSSLESS) == 64 + n_tokens * g.token_bytes


@settings(max_examples=100, deadline=None)
@given(geometries(), TOKENS, PRECISIONS, st.integers(0, 2**32), st.sampled_from([1e-6, 1e-3, 1.0, 20.0]))
def test_errors_stay_within_the_bound_that_the_quantisation_step_sets(
    g: Geometry, n_tokens: int, precision: Precision, seed: int, scale: float
) -> None:
    slab = random_slab(g, n_tokens, seed, scale)
    codec = Codec(g)
    payload = codec.encode(slab, precision, KEY)
    assert len(payload) == codec.encoded_size(n_tokens, precision)
    found, back = read_header(payload), decoded(codec, payload, n_tokens)
    assert found.precision == precision

    k = slab.k.astype(np.float64)
    if found.k_coding == 0:
        assert np.array_equal(back.k, slab.k)
    else:
        bound = channel_bound(k, found.k_coding)
        assert (np.abs(back.k - k) <= bound + f16_rounding(np.abs(k) + bound)).all()

    if found.v_coding == 0:
        assert np.array_equal(back.v, slab.v)
    else:
        # The rotation keeps lengths, so errors may be measured and summed on either side of it.
        off = rotated(back.v, g.head_dim_v) - rotated(slab.v, g.head_dim_v)
        bound = row_bound(rotated(slab.v, g.head_dim_v), found.v_coding)
        slack = np.sqrt((f16_rounding(np.abs(slab.v) + np.abs(back.v)) ** 2).sum(axis=2)) + 1e-5 * np.sqrt(
            (slab.v.astype(np.float64) ** 2).sum(axis=2)
        )
        assert (np.sqrt((off**2).sum(axis=2)) <= np.sqrt((bound**2).sum(axis=2)) + slack).all()


def channel_bound(k: F64, bits: int) -> F64:
    """Largest error of each value: what a channel has that got the fewest bits of all, none: half of its range.

    Where the range is below 256 times half of the smallest f16, the step is none.
    That of the mean number of bits is tested by ``test_each_bit_more_shrinks_the_error_about_fourfold``.
    """
    bound = np.empty_like(k)
    for start in range(0, k.shape[1], 64):
        group = k[:, start : start + 64]
        top = np.abs(group).max(axis=1, keepdims=True)
        step = np.ptp(group, axis=1, keepdims=True)
        bound[:, start : start + 64] = (
            step / 2 * (1 + 2.0**-6) + 2.0**-17 + f16_rounding(step) + f16_rounding(top) + 1e-6 * top
        )
    return bound


def row_bound(y: F64, bits: int) -> F64:
    """Root mean square error of a group, at most: that of even steps that reach its largest value.

    The largest gap between uneven levels, where a value may be half of it off, is at most 1.5 even steps.
    """
    bound = np.empty_like(y)
    for start in range(0, y.shape[2], 64):
        group = y[..., start : start + 64]
        top = np.abs(group).max(axis=-1, keepdims=True)
        step = 2 * top / (2**bits - 1)
        bound[..., start : start + 64] = 1.5 * step / 2 + 2**bits * f16_rounding(step)
    return bound


@CODED
def test_each_bit_more_shrinks_the_error_about_fourfold(bits: int) -> None:
    g, tokens = Geometry(2, 128, 128, 64, 64), 64
    slab = random_slab(g, tokens, 21)
    slab.v[...] = np.random.default_rng(21).standard_normal(slab.v.shape)
    codec = Codec(g)
    back = decoded(codec, codec.encode(slab, Precision(bits, bits), KEY), tokens)
    k, v = (x.astype(np.float64) for x in (slab.k, slab.v))
    k_error = np.square(back.k - k).mean() / (np.ptp(k, axis=1) ** 2).mean() * 12 * (2**bits - 1) ** 2
    assert 0.5 < k_error < 1.3  # of the same bits for every channel: sharing them by range never costs, and here gains
    # Of unit Gaussian values, by Max's table of the best fixed quantisers (IRE Trans. IT-6, 1960) at 2 .. 5 bits.
    best = {2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499, 6: 0.000636, 8: 0.00004}
    assert np.square(back.v - v).mean() < 1.15 * best[bits] * (v**2).mean()


def f16_rounding(x: F64) -> F64:
    return np.maximum(np.abs(x) * 2.0**-11, 2.0**-25)


@settings(max_examples=30, deadline=None)
@given(geometries(), TOKENS, PRECISIONS, st.integers(0, 2**32))
def test_coding_is_deterministic_and_blind_to_strides(
    g: Geometry, n_tokens: int, precision: Precision, seed: int
) -> None:
    slab = random_slab(g, n_tokens, seed)
    dense = KvSlab(slab.k.copy(), slab.v.copy())
    payload = Codec(g).encode(slab, precision, KEY)
    assert Codec(g).encode(dense, precision, KEY) == payload
    into = KvSlab(np.zeros_like(dense.k), np.zeros_like(dense.v))
    Codec(g).decode(payload, KEY, into)
    assert same_bits(into, decoded(Codec(g), payload, n_tokens))


@CODED
def test_decoding_writes_nothing_between_the_rows_of_a_strided_slab(bits: int) -> None:
    codec, into = Codec(SMALL), blank(SMALL, 43)
    codec.decode(codec.encode(random_slab(SMALL, 43, 1), Precision(bits, bits), KEY), KEY, into)
    for plane in (into.k, into.v):
        buffer = plane.base
        assert buffer is not None
        gaps = buffer[4:].reshape(SMALL.n_layer, -1)[:, 2 * plane[0].size :]
        assert (gaps == 0xA5).all() and gaps.size == 12 * SMALL.n_layer
        assert (buffer[:4] == 0xA5).all()


@pytest.mark.parametrize("kernels", available()[1:], ids=lambda kernels: kernels.name)
@settings(max_examples=60, deadline=None)
@given(
    g=geometries(),
    n_tokens=TOKENS,
    precision=PRECISIONS,
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-6, 1.0, 1e3]),
    data=st.data(),
)
def test_c_makes_the_same_bytes_and_the_same_values_as_numpy(
    kernels: Kernels, g: Geometry, n_tokens: int, precision: Precision, seed: int, scale: float, data: st.DataObject
) -> None:
    rope = data.draw(ropes(g))
    oracle, fast = Codec(g, rope, kernels=NUMPY), Codec(g, rope, kernels=kernels)
    slab = random_slab(g, n_tokens, seed, scale)
    weights = np.random.default_rng(seed).exponential(1, (g.n_layer, g.k_dim)).astype(np.float32) + np.float32(1e-9)
    for codec in (oracle, fast):
        codec.set_key_weights(weights)
    payload = oracle.encode(slab, precision, KEY, sinks=seed % 3)
    assert fast.encode(slab, precision, KEY, sinks=seed % 3) == payload
    assert same_bits(decoded(oracle, payload, n_tokens), decoded(fast, payload, n_tokens))


def test_bytes_bytearray_and_unaligned_read_only_views_decode_alike() -> None:
    codec = Codec(SMALL)
    payload = codec.encode(random_slab(SMALL, 64, 2), Precision(8, 4), KEY)
    shifted = memoryview(b"x" + payload)[1:]
    first = decoded(codec, payload, 64)
    assert same_bits(first, decoded(codec, bytes(payload), 64)) and same_bits(first, decoded(codec, shifted, 64))


# -- sizes -----------------------------------------------------------------------------------------


@CODED
def test_a_full_chunk_costs_half_a_bit_of_scales_for_k_a_quarter_for_v_and_a_header(bits: int) -> None:
    codec, values = Codec(SMALL), 2 * 64 * 64
    assert codec.encoded_size(64, Precision(bits, 16)) == 64 + values * (2 * bits + 1) // 16 + 2 * values
    assert codec.encoded_size(64, Precision(16, bits)) == 64 + 2 * values + values * (4 * bits + 1) // 32


@given(geometries(), st.integers(1, 200), PRECISIONS)
def test_no_chunk_is_ever_larger_than_its_raw_form(g: Geometry, n_tokens: int, precision: Precision) -> None:
    codec = Codec(g)
    assert codec.encoded_size(n_tokens, precision) <= codec.encoded_size(n_tokens, LOSSLESS)


def test_a_chunk_too_short_to_gain_from_groups_along_tokens_keeps_k_bit_exact() -> None:
    codec, slab = Codec(SMALL), random_slab(SMALL, 3, 3)
    payload = codec.encode(slab, Precision(4, 4), KEY)
    assert np.array_equal(decoded(codec, payload, 3).k, slab.k)
    assert read_header(payload).precision == Precision(4, 4)


@pytest.mark.parametrize("n_tokens", [1, 4096])
def test_the_shortest_and_the_longest_chunk_round_trip(n_tokens: int) -> None:
    g = Geometry(1, 64, 64, 64, 64)
    codec, slab = Codec(g), random_slab(g, n_tokens, 4)
    payload = codec.encode(slab, Precision(8, 8), KEY)
    assert len(payload) == codec.encoded_size(n_tokens, Precision(8, 8))
    assert np.abs(decoded(codec, payload, n_tokens).k.astype(np.float32) - slab.k).max() < 0.1


# -- misuse ----------------------------------------------------------------------------------------


def test_slabs_keys_and_precisions_that_do_not_fit_are_the_callers_error() -> None:
    codec, slab = Codec(SMALL), random_slab(SMALL, 8, 8)
    payload = codec.encode(slab, LOSSLESS, KEY)
    wrong = random_slab(Geometry(2, 32, 64, 32, 32), 8, 8)
    floats = KvSlab(slab.k.astype(np.float32), slab.v)
    with pytest.raises(ValueError, match="does not fit"):
        codec.encode(wrong, LOSSLESS, KEY)
    with pytest.raises(ValueError, match="does not fit"):
        codec.decode(payload, KEY, wrong)
    with pytest.raises(ValueError, match="float16"):
        codec.encode(floats, LOSSLESS, KEY)
    with pytest.raises(ValueError, match="16 bytes"):
        codec.encode(slab, LOSSLESS, ChunkKey(b"short"))
    with pytest.raises(ValueError, match="no coding for 7 bits"):
        codec.encoded_size(64, Precision(7, 4))
    with pytest.raises(ValueError, match="at least one token"):
        codec.encoded_size(0, LOSSLESS)


# -- threads ---------------------------------------------------------------------------------------


def test_four_threads_share_a_codec_and_none_sees_anothers_values() -> None:
    codec = Codec(SMALL)
    jobs = [(random_slab(SMALL, 8 + 9 * i, i), Precision(BITS[i % 7], BITS[i % 5])) for i in range(16)]
    alone = [
        (bytes(p), decoded(Codec(SMALL), p, s.n_tokens)) for s, q in jobs for p in [Codec(SMALL).encode(s, q, KEY)]
    ]

    def work(round: int) -> bool:
        slab, precision = jobs[round % 16]
        payload, values = alone[round % 16]
        coded = codec.encode(slab, precision, KEY)
        return coded == payload and same_bits(decoded(codec, coded, slab.n_tokens), values)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(400)))


def test_results_stay_as_they_are_when_the_codec_goes_on_to_other_chunks() -> None:
    codec = Codec(SMALL)
    payload = codec.encode(random_slab(SMALL, 64, 10), Precision(4, 4), KEY)
    first, coded, values = decoded(codec, payload, 64), bytes(payload), decoded(Codec(SMALL), payload, 64)
    second = codec.encode(random_slab(SMALL, 64, 11, 50.0), Precision(4, 4), OTHER_KEY)
    decoded(codec, second, 64, OTHER_KEY)
    assert payload == coded and same_bits(first, values)
