"""The kernels: numpy's fix the format, the C ones do the same and trust nobody's sizes."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from llmaas.kvchunks import kernels as room
from llmaas.kvchunks.kernels import NUMPY, Kernels, available, best
from llmaas.kvchunks.kernels_numpy import BITS, F16, U8, channels_bytes, rotated_bytes

SETS = pytest.mark.parametrize("kernels", available(), ids=lambda kernels: kernels.name)
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


@SETS
@pytest.mark.parametrize("bits", BITS)
def test_a_unit_made_by_hand_decodes_as_the_format_says(kernels: Kernels, bits: int) -> None:
    codes = [(37 * token + 11) % (1 << bits) for token in range(8)]
    scales = np.array([0.5, -3.0], "<f2").view(np.uint8)
    section = np.concatenate([scales, np.array(packed_by_the_book(codes, bits), np.uint8)])
    assert section.size == channels_bytes((1, 8, 1), bits)
    x = np.zeros((1, 8, 1), np.float16)
    kernels.decode_channels(section, bits, x)
    assert x.ravel().tolist() == [0.5 * code - 3 for code in codes]


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
    minima = np.zeros((2, values.size), np.float16)
    minima[1] = values
    section = np.concatenate([minima.reshape(-1).view(np.uint8), np.zeros(2 * values.size, np.uint8)])
    x: F16 = np.zeros((1, 8, values.size), np.float16)
    kernels.decode_channels(section, 2, x)
    assert np.array_equal(x, np.broadcast_to(values, x.shape))
    steps = np.concatenate([np.abs(minima[::-1]).reshape(-1).view(np.uint8), np.full(2 * values.size, 0x55, np.uint8)])
    kernels.decode_channels(steps, 2, x)
    assert np.array_equal(x, np.broadcast_to(np.abs(values), x.shape))


@SETS
def test_the_largest_magnitude_is_found_wherever_it_is_and_nan_is_above_all(kernels: Kernels) -> None:
    for at in ((0, 0, 0), (1, 2, 79), (1, 4, 63), (0, 3, 64)):
        for value in (2.0, -2.0, np.inf, -np.inf, np.nan):
            x = np.random.default_rng(0).uniform(-1, 1, (2, 5, 80)).astype(np.float16)
            x[at] = value
            assert kernels.largest(x) == int(np.float16(value).view(np.uint16)) & 0x7FFF


@NATIVE
def test_what_does_not_fit_is_refused_before_c_sees_it(kernels: Kernels) -> None:
    x: F16 = np.zeros((2, 9, 32), np.float16)
    k: U8 = np.zeros(channels_bytes((2, 9, 32), 4), np.uint8)
    v: U8 = np.zeros(rotated_bytes((2, 9, 32), 4), np.uint8)
    kernels.encode_channels(x, 4, k)
    kernels.encode_rotated(x, 4, 32, v)
    read_only = x.copy()
    read_only.flags.writeable = False
    for wrong in (
        lambda: kernels.encode_channels(x, 4, k[:-1]),
        lambda: kernels.decode_channels(k[:-1], 4, x),
        lambda: kernels.encode_rotated(x, 4, 32, v[1:]),
        lambda: kernels.decode_rotated(np.concatenate([v, v])[::2], 4, 32, x),
        lambda: kernels.encode_channels(x, 7, k),
        lambda: kernels.encode_channels(x[:, :, ::2], 4, k[: k.size // 2]),
        lambda: kernels.encode_channels(x.astype(np.float32), 4, k),  # type: ignore[arg-type]
        lambda: kernels.encode_rotated(x, 4, 64, v),
        lambda: kernels.encode_rotated(x, 4, 3, v),
        lambda: kernels.decode_channels(k, 4, read_only),
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
        "import sys, pathlib; import llmaas.kvchunks.kernels as k; k.__file__ = sys.argv[1]; k.available.cache_clear();"
        "assert k.best() is k.NUMPY; print(k.best().name)"
    )
    here = tmp_path / "kernels.py"
    for content in (None, b"not a library"):
        if content is not None:
            (tmp_path / "_kvcodec.so").write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", code, str(here)],
            check=True, capture_output=True, text=True, timeout=60, cwd=Path(room.__file__).parents[2],
        )  # fmt: skip
        assert done.stdout.strip() == "numpy"
