"""The header: no damage goes unnoticed, and the format on disk stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, check, read_header
from llmaas.kvchunks.codec.kernels import Kernels, available
from llmaas.records import Geometry, Precision
from tests.support.kv_slabs import (
    KEY,
    OTHER_KEY,
    SMALL,
    decoded,
    random_slab,
    refused,
)


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
