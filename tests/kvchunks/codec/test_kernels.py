"""The kernels: numpy's fix the format, the C ones do the same and trust nobody's sizes."""

from __future__ import annotations

import mmap
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmaas.kv_arrays import Rope
from llmaas.kvchunks.codec import kernels as room
from llmaas.kvchunks.codec.kernels import NUMPY, Kernels, available, best
from llmaas.kvchunks.codec.kernels_channels import BadWords, RopeRotation, channels_bytes, water_fill
from llmaas.kvchunks.codec.kernels_numpy import BITS, F16, F32, U8, rotated_bytes
from llmaas.kvchunks.codec.planes import rope_rotation

SETS = pytest.mark.parametrize("kernels", available(), ids=lambda kernels: kernels.name)
ONES: F32 = np.ones((2, 32), np.float32)
NATIVE = pytest.mark.parametrize("kernels", available()[1:], ids=lambda kernels: kernels.name)


def packed_by_the_book(codes: list[int], bits: int) -> list[int]:
    """Eight codes of a unit, field by field as the format says: the slow way, one bit at a time."""
    packed, low = [0] * bits, 0
    for width in (8, 4, 2, 1):
        if bits & width:
            for token, code in enumerate(codes):
                packed[low + token % width] |= (code >> low) % (1 << width) << token // width * width
            low += width
    return packed


def keys_packed_by_the_book(codes: list[list[int]], widths: list[int]) -> list[int]:
    """A unit of keys, ``codes[token][channel]``, as the format says: fields of 8, 4, 2, 1 bits, high bits first."""
    packed = []
    for field in (8, 4, 2, 1):
        channels = [c for c, width in enumerate(widths) if width & field]
        rows = [[0] * len(channels) for _ in range(field)]
        for i, channel in enumerate(channels):
            below = sum(f for f in (4, 2, 1) if f < field and widths[channel] & f)
            for token in range(8):
                part = (codes[token][channel] >> below) % (1 << field)
                rows[token % field][i] |= part << token // field * field
        packed += [byte for row in rows for byte in row]
    return packed


@SETS
@pytest.mark.parametrize("widths", [[0, 1, 2, 3, 4, 5, 6, 7, 8, 4], [8, 8, 0, 0, 4, 4], [5, 3, 4], [2]])
def test_a_unit_of_keys_made_by_hand_decodes_as_the_format_says(kernels: Kernels, widths: list[int]) -> None:
    dim, bits = len(widths), sum(widths) // len(widths)
    codes = [[(37 * token + 11 * channel) % (1 << width) for channel, width in enumerate(widths)] for token in range(8)]
    words = np.full(dim, 0.5, "<f2").view(np.uint16) + np.array(widths, np.uint16)
    lows = np.full(dim, -3.0, "<f2").view(np.uint16)
    packed = np.array(keys_packed_by_the_book(codes, widths), np.uint8)
    section = np.concatenate([words.view(np.uint8), lows.view(np.uint8), packed])
    assert section.size == channels_bytes((1, 8, dim), bits)
    x = np.zeros((1, 8, dim), np.float16)
    kernels.decode_channels(section, bits, None, x)
    assert x[0].tolist() == [[0.5 * code - 3 for code in token] for token in codes]


@SETS
def test_a_section_whose_channels_have_other_bits_than_it_says_is_refused_untouched(kernels: Kernels) -> None:
    x: F16 = np.random.default_rng(1).standard_normal((2, 64, 32)).astype(np.float16)
    section: U8 = np.zeros(channels_bytes(x.shape, 4), np.uint8)
    kernels.encode_channels(x, 4, None, ONES, section)
    layer = section.size // 2
    for at, change in ((0, 1), (layer, 1), (layer + 62, 15)):
        wrong, into = section.copy(), np.full_like(x, 7)
        wrong[at] ^= change
        with pytest.raises(BadWords):
            kernels.decode_channels(wrong, 4, None, into)
        assert (into == 7).all()


@SETS
@pytest.mark.parametrize("halves", [False, True])
def test_a_key_that_only_rotates_costs_no_error_at_all(kernels: Kernels, halves: bool) -> None:
    """The same key at 64 positions is one value per channel once it is un-rotated."""
    angles = np.array([1.0, 0.3, 0.01])
    rope, key = a_rotation(angles, head=8, halves=halves), np.random.default_rng(2).standard_normal(8)
    first, second = (np.array([0, 1, 2]), np.array([3, 4, 5])) if halves else (np.array([0, 2, 4]), np.array([1, 3, 5]))
    x = np.tile(key, (64, 1))
    for place in range(64):
        a, b, cosine, sine = x[place, first], x[place, second], np.cos(angles * place), np.sin(angles * place)
        x[place, first], x[place, second] = a * cosine - b * sine, b * cosine + a * sine
    slab = x[None].astype(np.float16)
    section: U8 = np.zeros(channels_bytes(slab.shape, 2), np.uint8)
    kernels.encode_channels(slab, 2, rope, np.ones((1, 8), np.float32), section)
    into = np.zeros_like(slab)
    kernels.decode_channels(section, 2, rope, into)
    assert np.abs(into.astype(np.float32) - slab).max() < 0.004
    kernels.encode_channels(slab, 2, None, np.ones((1, 8), np.float32), section)
    kernels.decode_channels(section, 2, None, into)
    assert np.abs(into.astype(np.float32) - slab).max() > 0.1


def a_rotation(angles: npt.NDArray[np.float64], head: int, halves: bool) -> RopeRotation:
    rope = Rope(angles[None].astype(np.float32), halves)
    found = rope_rotation(rope, head)
    assert found is not None
    return found


@given(hnp.arrays(np.int32, (2, 24), elements=st.integers(0, 65280)), st.sampled_from(BITS))
def test_bits_are_shared_to_the_last_one_and_nobody_more_important_gets_fewer(
    score: npt.NDArray[np.int32], bits: int
) -> None:
    widths = water_fill(score, bits)
    assert (widths.sum(axis=1) == bits * 24).all() and widths.min() >= 0 and widths.max() <= 8
    for layer in range(2):
        order = np.argsort(score[layer], kind="stable")
        assert (np.diff(widths[layer][order]) >= -1).all()
        apart = score[layer][:, None] - score[layer][None] >= 256
        assert (widths[layer][:, None] >= widths[layer][None])[apart].all()


@SETS
def test_a_channel_that_matters_more_is_coded_more_finely(kernels: Kernels) -> None:
    x: F16 = np.random.default_rng(3).standard_normal((1, 64, 32)).astype(np.float16)
    weights: F32 = np.ones((1, 32), np.float32)
    weights[0, :8] = 16
    section: U8 = np.zeros(channels_bytes(x.shape, 4), np.uint8)
    kernels.encode_channels(x, 4, None, weights, section)
    into = np.zeros_like(x)
    kernels.decode_channels(section, 4, None, into)
    error = np.square(into.astype(np.float64) - x).mean(axis=(0, 1))
    assert 100 < error[8:].mean() / error[:8].mean() < 500  # 16 times finer, squared


@SETS
@pytest.mark.parametrize(("bits", "curve"), [(8, 0.0), (6, 0.0), (5, 0.0003), (4, 0.0018), (3, 0.008), (2, 0.014)])
def test_levels_of_v_are_the_curve_that_the_format_says(kernels: Kernels, bits: int, curve: float) -> None:
    codes = [(37 * token + 11) % (1 << bits) for token in range(8)]
    steps = np.full(8, 0.25, "<f2").view(np.uint8)
    section = np.concatenate([steps, np.array(packed_by_the_book(codes, bits), np.uint8)])
    assert section.size == rotated_bytes((1, 8, 1), bits)
    x = np.zeros((1, 8, 1), np.float16)
    kernels.decode_rotated(section, bits, 1, x)
    signed = [2 * code + 1 - 2**bits for code in codes]
    assert x.ravel() == pytest.approx([0.25 * s * (1 + curve * s * s) for s in signed], rel=2**-10)


@SETS
def test_every_finite_f16_survives_as_a_minimum_and_as_a_step(kernels: Kernels) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = patterns[np.isfinite(patterns)]
    words = np.full(values.size, 2, np.uint16)
    codes = np.zeros(2 * values.size, np.uint8)
    x: F16 = np.zeros((1, 8, values.size), np.float16)
    kernels.decode_channels(np.concatenate([words.view(np.uint8), values.view(np.uint8), codes]), 2, None, x)
    assert np.array_equal(x, np.broadcast_to(values, x.shape))
    steps = np.abs(values).view(np.uint16) & 0xFFF0
    lows = np.zeros(2 * values.size, np.uint8)
    kernels.decode_channels(np.concatenate([(steps | words).view(np.uint8), lows, codes + 0x55]), 2, None, x)
    assert np.array_equal(x, np.broadcast_to(steps.view(np.float16), x.shape))


@SETS
def test_the_largest_magnitude_is_found_wherever_it_is_and_nan_is_above_all(kernels: Kernels) -> None:
    for at in ((0, 0, 0), (1, 2, 79), (1, 4, 63), (0, 3, 64)):
        for value in (2.0, -2.0, np.inf, -np.inf, np.nan):
            x = np.random.default_rng(0).uniform(-1, 1, (2, 5, 80)).astype(np.float16)
            x[at] = value
            assert kernels.largest(x) == int(np.float16(value).view(np.uint16)) & 0x7FFF


@NATIVE
def test_layers_may_lie_more_bytes_apart_than_32_bits_count(kernels: Kernels) -> None:
    """Memory that nobody touches takes none."""
    apart = (1 << 32) + 4096
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.10 lacks the name
    memory = np.frombuffer(mmap.mmap(-1, apart + 4096, flags=flags), np.uint8)
    far: F16 = np.ndarray((2, 9, 32), np.float16, memory, 0, (apart, 64, 2))
    far[...] = near = np.random.default_rng(4).standard_normal(far.shape).astype(np.float16)
    k: U8 = np.zeros(channels_bytes(far.shape, 4), np.uint8)
    v: U8 = np.zeros(rotated_bytes(far.shape, 4), np.uint8)
    NUMPY.encode_channels(near, 4, None, ONES, k)
    NUMPY.encode_rotated(near, 4, 32, v)
    found_k, found_v = np.zeros_like(k), np.zeros_like(v)
    kernels.encode_channels(far, 4, None, ONES, found_k)
    kernels.encode_rotated(far, 4, 32, found_v)
    assert kernels.largest(far) == NUMPY.largest(near)
    assert np.array_equal(found_k, k) and np.array_equal(found_v, v)
    kernels.decode_channels(k, 4, None, far)
    NUMPY.decode_channels(k, 4, None, near)
    assert np.array_equal(far, near)
    kernels.decode_rotated(v, 4, 32, far)
    NUMPY.decode_rotated(v, 4, 32, near)
    assert np.array_equal(far, near)


@NATIVE
def test_what_does_not_fit_is_refused_before_c_sees_it(kernels: Kernels) -> None:
    x: F16 = np.zeros((2, 9, 32), np.float16)
    k: U8 = np.zeros(channels_bytes((2, 9, 32), 4), np.uint8)
    v: U8 = np.zeros(rotated_bytes((2, 9, 32), 4), np.uint8)
    kernels.encode_channels(x, 4, None, ONES, k)
    kernels.encode_rotated(x, 4, 32, v)
    read_only = x.copy()
    read_only.flags.writeable = False
    for wrong in (
        lambda: kernels.encode_channels(x, 4, None, ONES, k[:-1]),
        lambda: kernels.decode_channels(k[:-1], 4, None, x),
        lambda: kernels.encode_rotated(x, 4, 32, v[1:]),
        lambda: kernels.decode_rotated(np.concatenate([v, v])[::2], 4, 32, x),
        lambda: kernels.encode_channels(x, 7, None, ONES, k),
        lambda: kernels.encode_channels(x[:, :, ::2], 4, None, ONES, k[: k.size // 2]),
        lambda: kernels.encode_channels(x.astype(np.float32), 4, None, ONES, k),
        lambda: kernels.encode_rotated(x, 4, 64, v),
        lambda: kernels.encode_rotated(x, 4, 3, v),
        lambda: kernels.decode_channels(k, 4, None, read_only),
        lambda: kernels.encode_channels(x, 4, None, ONES[:, :31], k),
        lambda: kernels.encode_channels(x, 4, a_rotation(np.ones(3), head=12, halves=True), ONES, k),
        lambda: kernels.decode_channels(
            k, 4, RopeRotation(np.zeros((1, 64, 2, 32), np.float32), np.ones(2, np.uint8), 16, True), x
        ),
        lambda: kernels.largest(x[0]),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_the_c_kernels_were_built_wherever_there_is_a_compiler() -> None:
    """Optional means that users without a compiler still have a codec, not that a broken build passes here."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if subprocess.run(["which", compiler], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no compiler")
    assert best() is not NUMPY
    assert [kernels.name for kernels in available()][:2] == ["numpy", "c"]


def test_without_the_library_or_with_a_foreign_one_numpy_does_the_work(tmp_path: Path) -> None:
    """A copy of the room with no library beside it, then with a file that is none."""
    code = (
        "import sys; from llmaas.kvchunks.codec import kernels as k, kernels_native as native;"
        "native.__file__ = sys.argv[1];"
        "k.available.cache_clear();"
        "assert k.best() is k.NUMPY; print(k.best().name)"
    )
    here = tmp_path / "kernels_native.py"
    for content in (None, b"not a library"):
        if content is not None:
            (tmp_path / "_kvcodec.so").write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", code, str(here)],
            check=True, capture_output=True, text=True, timeout=60, cwd=Path(room.__file__).parents[3],
        )  # fmt: skip
        assert done.stdout.strip() == "numpy"
