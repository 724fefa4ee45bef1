"""F2. Quantise and dequantise rows of float32 in ggml's block formats, and convert f16 <-> f32.

Law: a kernel reads one contiguous array and writes another; it keeps nothing. Two sets speak the very
same formats: ``NUMPY``, the oracle, and ``best()``, ggml's own SIMD kernels out of the shared libraries
that llama-cpp-python ships (called through ctypes, which releases the GIL), with NUMPY for whatever is
missing there. llama_cpp itself is never imported: only its folder is looked up.

    Q4_1, 20 bytes per 32 values    d f16 | m f16 | qs u8[16]    x[j] = (qs[j] & 15) * d + m
                                                                 x[j+16] = (qs[j] >> 4) * d + m
    Q8_0, 34 bytes per 32 values    d f16 | qs i8[32]            x[j] = qs[j] * d

(ggml-common.h, block_q4_1 and block_q8_0.) Dequantising is exact in every set: code times scale fits a
float32, so there is one rounding, fused or not. Quantising may differ between CPUs in the sign of a zero
minimum, which decodes alike, and by one code where a value lies within an ulp of the middle of two codes;
any set decodes what any other coded.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 32
"""Values that share a scale."""

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Kernel = Callable[[Array, Array], None]
"""``kernel(source, destination)``: both contiguous, sizes as the format demands."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """One set of kernels. f16 travels as uint16 bit patterns, blocks as uint8."""

    to_f32: Kernel
    to_f16: Kernel
    quantise_q4_1: Kernel
    dequantise_q4_1: Kernel
    quantise_q8_0: Kernel
    dequantise_q8_0: Kernel


# -- the oracle -------------------------------------------------------------------------------


def _to_f32(src: Array, dst: Array) -> None:
    np.copyto(dst, src.view(np.float16))


def _to_f16(src: Array, dst: Array) -> None:
    with np.errstate(over="ignore", under="ignore"):
        np.copyto(dst.view(np.float16), src, casting="same_kind")


def _put_f16(blocks: Array, at: int, values: F32) -> None:
    with np.errstate(over="ignore", under="ignore"):
        blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _get_f16(blocks: Array, at: int) -> F32:
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _over(codes: float, size: F32) -> F32:
    """``codes / size``, 0 where the size is 0."""
    return np.divide(np.float32(codes), size, out=np.zeros_like(size), where=size != 0)


def _quantise_q4_1(src: Array, dst: Array) -> None:
    x, blocks = src.reshape(-1, GROUP), dst.reshape(-1, 20)
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(15)
    codes = np.minimum((x - low) * _over(1, d) + np.float32(0.5), 15).astype(np.uint8)
    _put_f16(blocks, 0, d)
    _put_f16(blocks, 2, low)
    blocks[:, 4:] = codes[:, :16] | codes[:, 16:] << 4


def _dequantise_q4_1(src: Array, dst: Array) -> None:
    blocks, x = src.reshape(-1, 20), dst.reshape(-1, GROUP)
    d, low, packed = _get_f16(blocks, 0), _get_f16(blocks, 2), blocks[:, 4:]
    x[:, :16] = (packed & 15).astype(np.float32) * d + low
    x[:, 16:] = (packed >> 4).astype(np.float32) * d + low


def _quantise_q8_0(src: Array, dst: Array) -> None:
    x, blocks = src.reshape(-1, GROUP), dst.reshape(-1, 34)
    top = np.abs(x).max(axis=1, keepdims=True)
    _put_f16(blocks, 0, top / np.float32(127))
    blocks[:, 2:] = np.rint(x * _over(127, top)).astype(np.int8).view(np.uint8)


def _dequantise_q8_0(src: Array, dst: Array) -> None:
    blocks, x = src.reshape(-1, 34), dst.reshape(-1, GROUP)
    x[...] = blocks[:, 2:].view(np.int8).astype(np.float32) * _get_f16(blocks, 0)


NUMPY = Kernels(_to_f32, _to_f16, _quantise_q4_1, _dequantise_q4_1, _quantise_q8_0, _dequantise_q8_0)

# -- ggml's -----------------------------------------------------------------------------------

_BLOCK_BYTES = {"q4_1": 20, "q8_0": 34}
_SYMBOLS: dict[str, tuple[tuple[str, str], ...]] = {
    # kernel: (library, symbol), the fastest first; each is void f(const void *src, void *dst, int64_t values).
    # Q8_0's reference is 18 times slower than the SIMD one (roundf); ggml-base's f16 rows are no faster than numpy.
    "to_f32": (("ggml-cpu", "ggml_cpu_fp16_to_fp32"),),
    "to_f16": (("ggml-cpu", "ggml_cpu_fp32_to_fp16"),),
    "quantise_q4_1": (("ggml-base", "quantize_row_q4_1_ref"),),
    "dequantise_q4_1": (("ggml-base", "dequantize_row_q4_1"),),
    "quantise_q8_0": (("ggml-cpu", "quantize_row_q8_0"), ("ggml-base", "quantize_row_q8_0_ref")),
    "dequantise_q8_0": (("ggml-base", "dequantize_row_q8_0"),),
}


@lru_cache(maxsize=1)
def best() -> Kernels:
    """The fastest kernels this installation has; each one is tried against the oracle before it is trusted."""
    found = {name: kernel for name in _SYMBOLS if (kernel := _native(name)) is not None}
    return replace(NUMPY, **found)


def _native(name: str) -> Kernel | None:
    for library, symbol in _SYMBOLS[name]:
        function = getattr(_library(library), symbol, None)
        if function is not None:
            function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
            function.restype = None
            kernel = _wrap(name, function)
            if _agrees(name, kernel):
                return kernel
    return None


def _wrap(name: str, function: Any) -> Kernel:
    verb, _, form = name.partition("_")
    block_bytes = _BLOCK_BYTES.get(form, 0)

    def kernel(src: Array, dst: Array) -> None:
        # C trusts its pointers, so whatever numpy would refuse must be refused here.
        values, coded = (dst.size, src.size) if verb == "dequantise" else (src.size, dst.size)
        if coded != (values // GROUP * block_bytes if block_bytes else values):
            raise ValueError(f"{name}: {src.size} elements do not go into {dst.size}")
        if not (src.flags.c_contiguous and dst.flags.c_contiguous and dst.flags.writeable):
            raise ValueError(f"{name} needs contiguous arrays and a writable destination")
        function(src.ctypes.data, dst.ctypes.data, values)

    return kernel


@lru_cache(maxsize=2)
def _library(name: str) -> ctypes.CDLL | None:
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    try:
        library = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / f"lib{name}{suffix}"))
        if name == "ggml-cpu":
            library.ggml_cpu_init()  # fills the f16 table that CPUs without conversion instructions use
    except (OSError, AttributeError):
        return None
    return library


def _agrees(name: str, kernel: Kernel) -> bool:
    """Whether ``kernel`` does to a small sample what the oracle does; quantisers may be one code apart."""
    verb, _, form = name.partition("_")
    wave: F32 = np.sin(np.arange(8 * GROUP, dtype=np.float32)) * np.float32(3) + np.float32(1)
    half = np.zeros(wave.size, np.uint16)
    NUMPY.to_f16(wave, half)
    if name == "to_f16":
        return bool(np.array_equal(_run(kernel, wave, half), half))
    if name == "to_f32":
        return bool(np.array_equal(_run(kernel, half, wave), _run(NUMPY.to_f32, half, wave)))
    dequantise: Kernel = getattr(NUMPY, f"dequantise_{form}")
    blocks = _run(getattr(NUMPY, f"quantise_{form}"), wave, np.zeros(8 * _BLOCK_BYTES[form], np.uint8))
    expected = _run(dequantise, blocks, wave)
    if verb == "dequantise":
        return bool(np.array_equal(_run(kernel, blocks, wave), expected))
    one_code = 6 / 15 if form == "q4_1" else 4 / 127
    return bool(np.abs(_run(dequantise, _run(kernel, wave, blocks), wave) - expected).max() < 1.1 * one_code)


def _run(kernel: Kernel, src: Array, like: Array) -> Array:
    dst = np.zeros_like(like)
    kernel(src, dst)
    return dst
