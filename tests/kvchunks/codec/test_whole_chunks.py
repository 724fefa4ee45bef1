"""K and V of several chunks, decoded by one call: the same as one by one, by all kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, SoundChunk
from llmaas.kvchunks.codec.header import HEADER_BYTES, stamped
from llmaas.kvchunks.codec.kernels import Kernels, available
from llmaas.records import LOSSLESS, Geometry, Precision
from tests.support.kv_slabs import KEY, PRECISIONS, SMALL, blank, geometries, random_slab, ropes, same_bits

ALL = pytest.mark.parametrize("kernels", available(), ids=lambda kernels: kernels.name)


def sound(codec: Codec, n_tokens: int, precision: Precision, sinks: int, seed: int) -> SoundChunk:
    payload = codec.encode(random_slab(codec.geometry, n_tokens, seed), precision, KEY, sinks)
    return codec.sound(payload, KEY, n_tokens)


def by_planes(codec: Codec, kernels: Kernels, chunk: SoundChunk, slab: KvSlab) -> None:
    """Decode a chunk without sinks, both of whose planes are coded, plane by plane."""
    g = codec.geometry
    kernels.decode_channels(chunk.body[: chunk.k_bytes], chunk.k_coding, None, slab.k)
    kernels.decode_rotated(chunk.body[chunk.k_bytes :], chunk.v_coding, np.gcd(g.head_dim_v, 128), slab.v)


@settings(max_examples=40, deadline=None)
@given(
    geometries().flatmap(lambda g: st.tuples(st.just(g), ropes(g))),
    st.lists(st.tuples(st.integers(1, 70), PRECISIONS, st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=4),
)
def test_all_kernels_make_the_same_of_several_chunks_and_leave_what_is_between_them(
    model: tuple[Geometry, object], chunks: Sequence[tuple[int, Precision, int, int]]
) -> None:
    g, rope = model
    made = []
    for kernels in available():
        codec = Codec(g, rope, kernels=kernels)  # type: ignore[arg-type]
        slab, placed = blank(g, sum(9 + n for n, _, _, _ in chunks)), []
        slab.k[...] = slab.v[...] = 7
        at = 0
        for n, precision, sinks, seed in chunks:
            placed.append((sound(codec, n, precision, sinks, seed), at + 5))
            at += n + 9
        assert codec.decode_sound(placed[::-1], slab) == {}
        for chunk, first in placed:
            assert (slab.k[:, first - 5 : first] == 7).all() and (slab.v[:, first - 5 : first] == 7).all()
            alone, rows = blank(g, chunk.n_tokens), slice(first, first + chunk.n_tokens)
            assert codec.decode_sound([(chunk, 0)], alone) == {}
            assert same_bits(alone, KvSlab(slab.k[:, rows], slab.v[:, rows]))
        made.append(slab)
    assert all(same_bits(made[0], slab) for slab in made[1:])


@ALL
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_chunk_is_what_its_planes_are(kernels: Kernels, bits: int) -> None:
    codec = Codec(SMALL, kernels=kernels)
    chunk = sound(codec, 64, Precision(bits, bits), 0, 3)
    whole, planes = blank(SMALL, 64), blank(SMALL, 64)
    assert codec.decode_sound([(chunk, 0)], whole) == {}
    by_planes(codec, kernels, chunk, planes)
    assert same_bits(whole, planes)


@ALL
def test_chunks_that_no_encoder_wrote_are_named_and_write_nothing_and_the_others_are_decoded(kernels: Kernels) -> None:
    codec = Codec(SMALL, kernels=kernels)
    payload = codec.encode(random_slab(SMALL, 64, 1), Precision(4, 4), KEY, 1)
    wrong = bytearray(payload)
    wrong[HEADER_BYTES + 2 * SMALL.n_layer * SMALL.k_dim] ^= 1  # behind the sink
    good, bad = codec.sound(payload, KEY, 64), codec.sound(stamped(wrong, KEY), KEY, 64)
    slab = blank(SMALL, 256)
    slab.k[...] = slab.v[...] = 7
    damaged = codec.decode_sound([(bad, 0), (good, 64), (bad, 128), (good, 192)], slab)
    assert sorted(damaged) == [0, 2] and "add up" in damaged[0].message
    for first in (0, 128):
        assert (slab.k[:, first : first + 64] == 7).all() and (slab.v[:, first : first + 64] == 7).all()
    alone = blank(SMALL, 64)
    codec.decode(payload, KEY, alone)
    for first in (64, 192):
        assert same_bits(alone, KvSlab(slab.k[:, first : first + 64], slab.v[:, first : first + 64]))


@ALL
def test_what_does_not_fit_is_refused_before_anything_is_written(kernels: Kernels) -> None:
    codec = Codec(SMALL, kernels=kernels)
    chunk = sound(codec, 64, Precision(4, 4), 0, 1)
    slab = blank(SMALL, 100)
    slab.k[...] = slab.v[...] = 7
    for wrong, first in (
        (chunk, -1),
        (chunk, 37),
        (chunk._replace(n_tokens=32), 0),
        (chunk._replace(n_tokens=0), 0),
        (chunk._replace(k_coding=5), 0),
        (chunk._replace(v_coding=7), 0),
        (chunk._replace(sinks=1), 0),
        (chunk._replace(sinks=-1), 0),
        (chunk._replace(k_bytes=chunk.k_bytes - 64), 0),
        (chunk._replace(body=chunk.body[:-1]), 0),
        (chunk._replace(body=np.repeat(chunk.body, 2)[::2]), 0),
    ):
        with pytest.raises(ValueError, match=r"tokens|coding|bytes"):
            codec.decode_sound([(wrong, first)], slab)
    with pytest.raises(ValueError, match="does not fit"):
        codec.decode_sound([(chunk, 0)], blank(Geometry(2, 64, 32, 32, 32), 64))
    assert (slab.k == 7).all() and (slab.v == 7).all()
    slab.k.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        codec.decode_sound([(chunk, 0)], slab)


@ALL
def test_chunks_of_plain_f16_and_no_chunks_at_all_go_the_same_way(kernels: Kernels) -> None:
    codec = Codec(SMALL, kernels=kernels)
    slab, into = random_slab(SMALL, 40, 5), blank(SMALL, 40)
    exact = codec.sound(codec.encode(slab, LOSSLESS, KEY), KEY, 40)
    assert codec.decode_sound([], into) == {} and codec.decode_sound([(exact, 0)], into) == {}
    assert same_bits(slab, into)


def test_bytes_at_any_address_are_decoded() -> None:
    codec = Codec(SMALL)
    payload = codec.encode(random_slab(SMALL, 64, 1), Precision(4, 4), KEY)
    room = (ctypes.c_uint8 * (len(payload) + 3))()
    into, same = blank(SMALL, 64), blank(SMALL, 64)
    codec.decode(payload, KEY, into)
    for shift in range(3):
        view = memoryview(room).cast("B")[shift : shift + len(payload)]
        view[:] = payload
        codec.decode(view, KEY, same)
        assert same_bits(into, same)
