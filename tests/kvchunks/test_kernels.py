"""Kernels: ggml's formats, by numpy and by ggml itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.kvchunks.kernels import GROUP, NUMPY, Array, Kernel, Kernels, best

SETS = pytest.mark.parametrize("kernels", [NUMPY, best()], ids=["numpy", "best"])
FORMS = pytest.mark.parametrize(("form", "block_bytes", "scale_bytes"), [("q4_1", 20, 4), ("q8_0", 34, 2)])


def run(kernel: Kernel, src: Array, size: int, dtype: type) -> Array:
    dst: Array = np.zeros(size, dtype)
    kernel(src, dst)
    return dst


def sample(seed: int, groups: int, scale: float) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(groups * GROUP) * scale + rng.normal() * scale).astype(np.float32)


@SETS
def test_a_q4_1_block_made_by_hand_decodes_as_the_format_says(kernels: Kernels) -> None:
    scales = np.array([0.5, -1.0], "<f2").view(np.uint8)
    packed = np.array([low | (15 - low) << 4 for low in range(16)], np.uint8)
    decoded = run(kernels.dequantise_q4_1, np.concatenate([scales, packed]), GROUP, np.float32)
    assert decoded.tolist() == [0.5 * c - 1 for c in (*range(16), *range(15, -1, -1))]


@SETS
def test_a_q8_0_block_made_by_hand_decodes_as_the_format_says(kernels: Kernels) -> None:
    codes = np.arange(-127, 129, 8, dtype=np.int16).astype(np.int8)
    block = np.concatenate([np.array([0.25], "<f2").view(np.uint8), codes.view(np.uint8)])
    assert run(kernels.dequantise_q8_0, block, GROUP, np.float32).tolist() == [0.25 * int(c) for c in codes]


@FORMS
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32), groups=st.integers(1, 50), scale=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 300.0, 5000.0])
)
def test_numpy_and_ggml_code_alike_and_decode_each_others_bytes_to_the_same_values(
    form: str, block_bytes: int, scale_bytes: int, seed: int, groups: int, scale: float
) -> None:
    x = sample(seed, groups, scale)
    size = groups * block_bytes
    ours = run(getattr(NUMPY, f"quantise_{form}"), x, size, np.uint8)
    theirs = run(getattr(best(), f"quantise_{form}"), x, size, np.uint8)
    for blocks in (ours, theirs):
        assert np.array_equal(
            run(getattr(NUMPY, f"dequantise_{form}"), blocks, x.size, np.float32),
            run(getattr(best(), f"dequantise_{form}"), blocks, x.size, np.float32),
        )
    a, b = ours.reshape(groups, -1), theirs.reshape(groups, -1)
    # Scales as numbers: the sign of a zero minimum is the CPU's own.
    scales_a, scales_b = (np.ascontiguousarray(m[:, :scale_bytes]).view("<f2") for m in (a, b))
    assert np.array_equal(scales_a, scales_b)
    # Where a value lies within an ulp of the middle of two codes, CPUs may round to either.
    assert np.count_nonzero(a[:, scale_bytes:] != b[:, scale_bytes:]) <= max(1, x.size // 1000)


@FORMS
@SETS
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-2, 1.0, 300.0]))
def test_a_coded_value_is_at_most_half_a_step_off(
    kernels: Kernels, form: str, block_bytes: int, scale_bytes: int, seed: int, scale: float
) -> None:
    x = sample(seed, 20, scale)
    blocks = run(getattr(kernels, f"quantise_{form}"), x, 20 * block_bytes, np.uint8)
    decoded = run(getattr(kernels, f"dequantise_{form}"), blocks, x.size, np.float32).reshape(20, GROUP)
    groups = x.reshape(20, GROUP).astype(np.float64)
    top = np.abs(groups).max(axis=1)
    if form == "q4_1":
        step, codes = np.ptp(groups, axis=1) / 15, 15
    else:
        step, codes = top / 127, 127
    # Half a step, plus what rounding the scale (times the largest code) and the minimum to f16 may add.
    bound = step / 2 + codes * np.maximum(step * 2**-11, 2**-25) + np.maximum(top * 2**-11, 2**-25) + 1e-6 * top
    assert (np.abs(decoded - groups) <= bound[:, None]).all()


@SETS
def test_every_f16_pattern_converts_to_the_float_that_numpy_says_and_back(kernels: Kernels) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    floats = run(kernels.to_f32, patterns, patterns.size, np.float32)
    assert np.array_equal(floats, patterns.view(np.float16).astype(np.float32), equal_nan=True)
    finite = np.isfinite(floats)
    assert np.array_equal(run(kernels.to_f16, floats, patterns.size, np.uint16)[finite], patterns[finite])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-8, 1e-5, 1.0, 1e4]))
def test_floats_round_to_the_same_f16_in_numpy_and_ggml(seed: int, scale: float) -> None:
    x = sample(seed, 30, scale)
    assert np.array_equal(run(NUMPY.to_f16, x, x.size, np.uint16), run(best().to_f16, x, x.size, np.uint16))


def test_a_destination_of_the_wrong_size_or_layout_is_refused_before_c_sees_it() -> None:
    x = sample(0, 4, 1.0)
    for kernels in (NUMPY, best()):
        with pytest.raises(ValueError):
            kernels.quantise_q4_1(x, np.zeros(4 * 20 - 1, np.uint8))
        with pytest.raises(ValueError):
            kernels.dequantise_q8_0(np.zeros(4 * 34, np.uint8), np.zeros(3 * GROUP, np.float32))
        with pytest.raises(ValueError):
            kernels.to_f16(x, np.zeros(x.size - 1, np.uint16))
    if best() is not NUMPY and best().to_f16 is not NUMPY.to_f16:
        with pytest.raises(ValueError, match="contiguous"):
            best().to_f16(x[::2], np.zeros(x.size // 2, np.uint16))


def test_ggml_kernels_are_found_without_importing_llama_cpp() -> None:
    code = (
        "import sys; from llmaas.kvchunks import kernels; found = kernels.best();"
        "assert 'llama_cpp' not in sys.modules;"
        "assert found.dequantise_q4_1 is not kernels.NUMPY.dequantise_q4_1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_llama_cpp_the_numpy_kernels_do_the_work() -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None; from llmaas.kvchunks import kernels;"
        "assert kernels.best() == kernels.NUMPY"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
