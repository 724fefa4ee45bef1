"""The codec: exact at 16 bits, within the quantisation step below, and never fooled by damage."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.errors import ChunkDamaged
from llmaas.kvchunks.codec.codec import Codec, check, read_header, sinks_at
from llmaas.kvchunks.codec.kernels import NUMPY, Kernels, available
from llmaas.kvchunks.codec.planes import rotation_size
from llmaas.records import F16, LOSSLESS, ChunkKey, Geometry, KvSlab, Precision, Rope

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


# -- round trips ------------------------------------------------------------------------------


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


# -- sizes ------------------------------------------------------------------------------------


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


# -- sinks, weights, RoPE ---------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(geometries(), TOKENS, PRECISIONS, st.integers(0, 5), st.integers(0, 2**32))
def test_the_first_tokens_are_kept_exactly_where_asked_and_the_rest_is_coded_as_without_them(
    g: Geometry, n_tokens: int, precision: Precision, sinks: int, seed: int
) -> None:
    codec, slab = Codec(g), random_slab(g, n_tokens, seed)
    payload = codec.encode(slab, precision, KEY, sinks)
    assert len(payload) == codec.encoded_size(n_tokens, precision, sinks)
    back = decoded(codec, payload, n_tokens)
    assert np.array_equal(back.k[:, :sinks], slab.k[:, :sinks]) and np.array_equal(back.v[:, :sinks], slab.v[:, :sinks])
    if read_header(payload).k_coding:
        rest = KvSlab(slab.k[:, sinks:], slab.v[:, sinks:])
        alone = decoded(codec, codec.encode(rest, precision, KEY), n_tokens - sinks)
        assert np.array_equal(back.k[:, sinks:], alone.k)


def test_only_a_context_begins_with_a_sink() -> None:
    assert (sinks_at(0), sinks_at(64), sinks_at(4096)) == (1, 0, 0)


def test_weights_change_how_keys_are_coded_but_never_whether_they_can_be_read() -> None:
    codec, slab = Codec(SMALL), random_slab(SMALL, 64, 14)
    plain = codec.encode(slab, Precision(3, 3), KEY)
    weights = np.ones((2, 64), np.float32)
    weights[:, :4] = 100
    codec.set_key_weights(weights)
    weighed = codec.encode(slab, Precision(3, 3), KEY)
    assert weighed != plain and len(weighed) == len(plain)
    fine, coarse = (np.abs(decoded(Codec(SMALL), p, 64).k.astype(np.float32) - slab.k) for p in (weighed, plain))
    assert fine[:, :, :4].mean() < coarse[:, :, :4].mean() / 8
    codec.set_key_weights(None)
    assert codec.encode(slab, Precision(3, 3), KEY) == plain
    for wrong in (np.ones((2, 63), np.float32), np.zeros((2, 64), np.float32), np.full((2, 64), np.nan, np.float32)):
        with pytest.raises(ValueError, match="weights"):
            codec.set_key_weights(wrong)


def test_keys_un_rotated_in_another_way_are_refused_and_exact_ones_are_not() -> None:
    slab = random_slab(SMALL, 64, 15)
    rotated_back = Codec(SMALL, Rope(np.full((2, 16), 0.5, np.float32), halves=True))
    payload = rotated_back.encode(slab, Precision(4, 4), KEY)
    assert "un-rotated" in refused(Codec(SMALL), payload, 64)
    assert "un-rotated" in refused(Codec(SMALL, Rope(np.full((2, 16), 0.25, np.float32), halves=True)), payload, 64)
    assert same_bits(decoded(Codec(SMALL), rotated_back.encode(slab, LOSSLESS, KEY), 64), slab)


def test_heads_too_large_to_rotate_are_coded_as_they_are() -> None:
    g = Geometry(1, 512, 64, 512, 64)
    slab, rope = random_slab(g, 64, 16), Rope(np.full((1, 256), 0.5, np.float32), halves=True)
    payload = Codec(g, rope).encode(slab, Precision(4, 4), KEY)
    assert read_header(payload).rope_id == 0 and payload == Codec(g).encode(slab, Precision(4, 4), KEY)


def test_a_chunk_coded_again_with_fewer_bits_errs_little_more_than_if_it_had_been_at_once() -> None:
    codec, slab = Codec(SMALL), random_slab(SMALL, 64, 17)
    for high, low in (((8, 8), (3, 3)), ((4, 4), (3, 2)), ((16, 16), (4, 4))):
        first = codec.encode(slab, Precision(*high), KEY, sinks=1)
        again, at_once = codec.lower(first, Precision(*low), KEY), codec.encode(slab, Precision(*low), KEY, sinks=1)
        assert len(again) == len(at_once)
        for plane in ("k", "v"):
            exact = getattr(slab, plane).astype(np.float64)
            errors = [np.square(getattr(decoded(codec, p, 64), plane) - exact).mean() for p in (again, at_once)]
            assert errors[0] < 1.5 * errors[1]
            assert np.array_equal(getattr(decoded(codec, again, 64), plane)[:, :1], getattr(slab, plane)[:, :1])
    with pytest.raises(ChunkDamaged):
        codec.lower(first[:-1], Precision(2, 2), KEY)


# -- what groups cannot hold --------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 65504.0, -65504.0])
@pytest.mark.parametrize("plane", ["k", "v"])
def test_a_tensor_with_non_finite_or_enormous_values_is_kept_exactly_and_the_other_is_coded(
    bad: float, plane: str
) -> None:
    codec, slab = Codec(SMALL), random_slab(SMALL, 64, 5)
    getattr(slab, plane)[1, 33, 7] = bad
    payload = codec.encode(slab, Precision(4, 4), KEY)
    back = decoded(codec, payload, 64)
    assert np.array_equal(getattr(back, plane).view(np.uint16), getattr(slab, plane).view(np.uint16))
    other = "v" if plane == "k" else "k"
    assert 0 < np.abs(getattr(back, other).astype(np.float32) - getattr(slab, other)).max() < 2
    assert codec.encoded_size(64, Precision(4, 4)) < len(payload) < codec.encoded_size(64, LOSSLESS)
    assert read_header(payload).precision == Precision(4, 4)


@CODED
@pytest.mark.parametrize("head_dim", [16, 128])
def test_the_largest_values_that_are_coded_stay_finite(bits: int, head_dim: int) -> None:
    g = Geometry(1, head_dim, head_dim, head_dim, head_dim)
    slab, rng = blank(g, 64), np.random.default_rng(6)
    slab.k[...] = rng.choice([-1.0, 1.0], slab.k.shape) * 2.0**13
    # A block of one sign rotates into a single enormous value: the worst case of the rotation.
    slab.v[...] = rng.choice([-1.0, 1.0], (1, 64, 1)) * np.floor(2.0**14 / math.sqrt(head_dim))
    codec = Codec(g)
    payload = codec.encode(slab, Precision(bits, bits), KEY)
    assert len(payload) == codec.encoded_size(64, Precision(bits, bits))
    back = decoded(codec, payload, 64)
    assert np.isfinite(back.k).all() and np.isfinite(back.v).all()


def test_finite_values_whose_rotation_would_overflow_f16_are_kept_exactly() -> None:
    g = Geometry(1, 128, 128, 128, 128)
    codec, slab = Codec(g), random_slab(g, 64, 12)
    slab.v[:, 3] = 20000.0
    back = decoded(codec, codec.encode(slab, Precision(4, 4), KEY), 64)
    assert np.array_equal(back.v, slab.v)


def test_padding_does_not_widen_the_groups_it_joins() -> None:
    # Values in a narrow band far from zero: a step is 0.1 / 15, but 4.1 / 15 if a zero joins the group.
    g, rng = Geometry(1, 80, 80, 80, 80), np.random.default_rng(13)
    codec, slab = Codec(g), blank(g, 43)
    slab.v[...] = 0
    slab.k[...] = 4 + 0.1 * rng.random(slab.k.shape)
    back = decoded(codec, codec.encode(slab, Precision(4, 4), KEY), 43)
    assert np.abs(back.k.astype(np.float32) - slab.k).max() < 0.01


def test_padding_does_not_sway_the_step_of_the_group_it_joins() -> None:
    # A row of 80 is a group of 64 and one of 16. The step that suits 48 zeros beside 16 equal values suits those badly.
    g = Geometry(1, 80, 80, 80, 80)
    codec, slab = Codec(g), blank(g, 8)
    slab.k[...] = 0
    slab.v[...] = (np.full((40, 16), 3.0) @ hadamard(16)).reshape(slab.v.shape)
    back = decoded(codec, codec.encode(slab, Precision(2, 2), KEY), 8)
    off = rotated(back.v, 80) - rotated(slab.v, 80)
    assert np.abs(off[..., 64:]).max() < 0.02


@CODED
def test_a_slab_of_equal_values_comes_back_as_it_was(bits: int) -> None:
    codec, slab = Codec(SMALL), blank(SMALL, 64)
    for value in (0.0, 0.375):
        slab.k[...] = value
        slab.v[...] = 0.0
        assert same_bits(decoded(codec, codec.encode(slab, Precision(bits, bits), KEY), 64), slab)


# -- damage -----------------------------------------------------------------------------------


def refused(codec: Codec, payload: bytes | bytearray, n_tokens: int = 40, key: ChunkKey = KEY) -> str:
    """Decode what must be refused with the slab untouched; the message."""
    into = blank(codec.geometry, n_tokens)
    before = into.k.copy(), into.v.copy()
    with pytest.raises(ChunkDamaged) as caught:
        codec.decode(payload, key, into)
    assert same_bits(into, KvSlab(*before))
    return caught.value.message


@pytest.fixture(scope="module")
def chunk() -> bytes:
    return bytes(Codec(SMALL).encode(random_slab(SMALL, 40, 7), Precision(8, 4), KEY))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_detected(chunk: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(chunk) - 1))
    damaged = bytearray(chunk)
    damaged[bit // 8] ^= 1 << bit % 8
    refused(Codec(SMALL), damaged)


def test_any_flipped_bit_of_the_header_is_detected(chunk: bytes) -> None:
    codec = Codec(SMALL)
    for bit in range(8 * 64):
        damaged = bytearray(chunk)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(codec, damaged)


@settings(deadline=None)
@given(data=st.data())
def test_any_truncation_or_addition_is_detected(chunk: bytes, data: st.DataObject) -> None:
    refused(Codec(SMALL), chunk[: data.draw(st.integers(0, len(chunk) - 1))])
    refused(Codec(SMALL), chunk + data.draw(st.binary(min_size=1, max_size=80)))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"LKVC\x03\x00" + tail))
def test_arbitrary_bytes_are_refused_and_never_crash(raw: bytes) -> None:
    refused(Codec(SMALL), raw)


def test_each_kind_of_mismatch_is_named(chunk: bytes) -> None:
    codec = Codec(SMALL)
    assert "its header alone needs 64" in refused(codec, b"")
    assert "not a coded chunk" in refused(codec, b"GGUF" + chunk[4:])
    assert "format version 9" in refused(codec, chunk[:4] + b"\x09\x00" + chunk[6:])
    assert "format version 2" in refused(codec, chunk[:4] + b"\x02\x00" + chunk[6:])
    assert "body bytes" in refused(codec, chunk[:-1])
    assert "checksum" in refused(codec, chunk[:-1] + bytes([chunk[-1] ^ 1]))
    assert OTHER_KEY.hex() in refused(codec, chunk, key=OTHER_KEY)
    assert "40 tokens, 39" in refused(codec, chunk, n_tokens=39)


@pytest.mark.parametrize(
    "other",
    [
        Geometry(1, 64, 64, 32, 32),
        Geometry(2, 64, 64, 64, 32),
        Geometry(2, 64, 64, 32, 64),
        Geometry(2, 32, 96, 32, 32),
    ],
)
def test_a_chunk_of_another_geometry_is_refused_even_if_the_sizes_agree(chunk: bytes, other: Geometry) -> None:
    assert "the model has" in refused(Codec(other), chunk)


def resealed(chunk: bytes, change: Callable[[bytearray], None]) -> bytearray:
    """``chunk`` with a change and a valid checksum, as a later version of the codec might write it."""
    changed = bytearray(chunk)
    change(changed)
    changed[56:64] = xxhash.xxh3_64_intdigest(bytes(changed[:56] + changed[64:])).to_bytes(8, "little")
    return changed


@pytest.mark.parametrize("offset", [8, 9])
def test_a_coding_from_the_future_is_refused_although_the_chunk_is_whole(chunk: bytes, offset: int) -> None:
    payload = resealed(chunk, lambda p: p.__setitem__(offset, 200))
    assert check(payload, KEY).n_tokens == 40
    assert "unknown way" in refused(Codec(SMALL), payload)


def test_a_header_whose_shape_does_not_fit_its_body_is_refused(chunk: bytes) -> None:
    payload = resealed(chunk, lambda p: p.__setitem__(8, 2))
    assert "its shape needs" in refused(Codec(SMALL), payload)


def test_check_accepts_a_whole_chunk_and_the_header_tells_what_it_is(chunk: bytes) -> None:
    found = check(chunk, KEY)
    assert found == read_header(chunk)
    assert (found.version, found.precision, found.key) == (3, Precision(8, 4), KEY)
    assert (found.n_tokens, found.geometry, found.body_bytes) == (40, SMALL, len(chunk) - 64)


@pytest.mark.parametrize("kernels", available(), ids=lambda kernels: kernels.name)
def test_the_format_on_disk_is_pinned(kernels: Kernels) -> None:
    g = Geometry(1, 2, 2, 2, 2)
    payload = bytes.fromhex(
        "4c4b56430300030503000000000102030405060708090a0b0c0d0e0f0900000001000000020000000200000002000200"
        "3800000000000000b09139b2c0aadbf21630000000c4003c8092b4d6c0f00f0000000300003800000038003000380034"
        "0038003600380038003800390038003a0038003b0038003c"
    )
    slab = KvSlab(np.zeros((1, 9, 2), np.float16), np.zeros((1, 9, 2), np.float16))
    slab.k[0, :, 0], slab.k[0, :, 1] = np.arange(9) - 4, 1
    slab.v[0, :, 0], slab.v[0, :, 1] = 0.5, np.arange(9) / 8
    assert Codec(g, kernels=kernels).encode(slab, Precision(3, 5), KEY) == payload
    into = decoded(Codec(g, kernels=kernels), payload, 9)
    assert into.k[0].T.tolist() == [
        [-4.0, -2.984375, -1.96875, -0.953125, 0.0625, 0.951171875, 1.966796875, 2.982421875, 3.998046875],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    ]
    assert into.v[0, :3].T.tolist() == [[0.5, 0.5, 0.5], [0.0, 0.125, 0.25]]


# -- misuse -----------------------------------------------------------------------------------


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


# -- rotation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", available(), ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32, 64, 128])
def test_what_is_coded_is_the_row_times_the_orthonormal_hadamard_matrix(kernels: Kernels, block: int) -> None:
    g = Geometry(1, 128, 128, block, block)
    codec, slab = Codec(g, kernels=kernels), blank(g, 8)
    slab.k[...] = 0
    # Rows of the matrix rotate into one value, -2 or 2, and zeros: 8 bits hold that all but exactly.
    rows = 2 * hadamard(block)[np.arange(8 * 128 // block) % block]
    slab.v[...] = rows.reshape(slab.v.shape)
    back = decoded(codec, codec.encode(slab, Precision(8, 8), KEY), 8)
    assert np.abs(rotated(back.v, block) - rotated(slab.v, block)).max() < 2 / 255 + 0.005
    assert np.abs(back.v - slab.v.astype(np.float64)).max() < 0.12


@pytest.mark.parametrize(("head_dim", "size"), [(64, 64), (80, 16), (96, 32), (128, 128), (256, 128), (40, 8), (7, 1)])
def test_the_rotation_is_the_largest_power_of_two_in_the_head(head_dim: int, size: int) -> None:
    assert rotation_size(head_dim) == size


def test_rotation_spreads_an_outlier_so_that_its_neighbours_survive() -> None:
    codec, slab = Codec(SMALL), random_slab(SMALL, 64, 9)
    slab.v[...] = np.random.default_rng(9).standard_normal(slab.v.shape)
    slab.v[:, :, 5] = 40.0
    back = decoded(codec, codec.encode(slab, Precision(4, 4), KEY), 64)
    unrotated_step = 40 / 15
    assert np.abs(back.v.astype(np.float32) - slab.v)[:, :, :32].std() < 0.8 * unrotated_step / math.sqrt(12)


# -- threads ----------------------------------------------------------------------------------


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
