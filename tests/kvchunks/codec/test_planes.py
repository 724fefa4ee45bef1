"""How K and V are coded: sinks, weights, RoPE, rotation, and what groups cannot hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import KvSlab, Rope
from llmaas.kvchunks.codec.codec import Codec, read_header, sinks_at
from llmaas.kvchunks.codec.kernels import Kernels, available
from llmaas.kvchunks.codec.planes import rotation_size
from llmaas.records import LOSSLESS, Geometry, Precision
from tests.support.kv_slabs import (
    CODED,
    KEY,
    PRECISIONS,
    SMALL,
    TOKENS,
    blank,
    decoded,
    geometries,
    hadamard,
    random_slab,
    refused,
    rotated,
    same_bits,
)

# -- sinks, weights, RoPE --------------------------------------------------------------------------


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


# -- what groups cannot hold -----------------------------------------------------------------------


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


# -- rotation --------------------------------------------------------------------------------------


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
