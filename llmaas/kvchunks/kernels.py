"""F2. The kernels that code and decode planes: numpy's, and the C ones built with the package.

Law: whichever is chosen, the bytes and the values are the same; only the time differs. ctypes calls C without the
GIL. C trusts its pointers, so whatever numpy would refuse is refused here first.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmaas.kvchunks import kernels_numpy as oracle
from llmaas.kvchunks.kernels_numpy import F16, U8

_VERSION = 2
"""Of the functions in ``_kvcodec.c``; a library left over from another version is not used."""
_ISA_NAMES = ("c", "c-avx2")


class Kernels(Protocol):
    """Codes planes (layers, tokens, dim) of f16. Formats and sizes: ``kernels_numpy``."""

    @property
    def name(self) -> str: ...

    def largest(self, x: F16) -> int: ...

    def encode_channels(self, x: F16, bits: int, out: U8) -> None: ...

    def decode_channels(self, data: U8, bits: int, x: F16) -> None: ...

    def encode_rotated(self, x: F16, bits: int, block: int, out: U8) -> None: ...

    def decode_rotated(self, data: U8, bits: int, block: int, x: F16) -> None: ...


class NumpyKernels:
    """The oracle."""

    name = "numpy"
    largest = staticmethod(oracle.largest)
    encode_channels = staticmethod(oracle.encode_channels)
    decode_channels = staticmethod(oracle.decode_channels)
    encode_rotated = staticmethod(oracle.encode_rotated)
    decode_rotated = staticmethod(oracle.decode_rotated)


NUMPY: Kernels = NumpyKernels()


class _Shape(ctypes.Structure):
    """``Shape`` of _kvcodec.c."""

    _fields_ = [(name, ctypes.c_ssize_t) for name in ("layer_stride", "token_stride", "layers", "tokens", "dim")]


@dataclass(frozen=True, slots=True)
class NativeKernels:
    """The C loops for one instruction set."""

    name: str
    _library: ctypes.CDLL
    _isa: int

    def largest(self, x: F16) -> int:
        return int(self._library.kv_largest(self._isa, x.ctypes.data, _shape(x)))

    def encode_channels(self, x: F16, bits: int, out: U8) -> None:
        _check(x, bits, out, oracle.channels_bytes(x.shape, bits), written=out)
        self._library.kv_encode_channels(self._isa, x.ctypes.data, _shape(x), bits, out.ctypes.data)

    def decode_channels(self, data: U8, bits: int, x: F16) -> None:
        _check(x, bits, data, oracle.channels_bytes(x.shape, bits), written=x)
        self._library.kv_decode_channels(self._isa, data.ctypes.data, _shape(x), bits, x.ctypes.data)

    def encode_rotated(self, x: F16, bits: int, block: int, out: U8) -> None:
        _check(x, bits, out, oracle.rotated_bytes(x.shape, bits), written=out)
        turn = _rotation(x, block)
        self._library.kv_encode_rotated(self._isa, x.ctypes.data, _shape(x), bits, *turn, out.ctypes.data)

    def decode_rotated(self, data: U8, bits: int, block: int, x: F16) -> None:
        _check(x, bits, data, oracle.rotated_bytes(x.shape, bits), written=x)
        turn = _rotation(x, block)
        self._library.kv_decode_rotated(self._isa, data.ctypes.data, _shape(x), bits, *turn, x.ctypes.data)


@lru_cache(maxsize=1)
def available() -> tuple[Kernels, ...]:
    """Every set of kernels that this installation and this machine have, the slowest first."""
    library = _load()
    if library is None:
        return (NUMPY,)
    native = (NativeKernels(_ISA_NAMES[isa], library, isa) for isa in range(library.kv_isa() + 1))
    return (NUMPY, *native)


def best() -> Kernels:
    """The fastest kernels this machine has."""
    return available()[-1]


def _load() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kvcodec{suffix}")
        try:
            library = ctypes.CDLL(str(path))
            if library.kv_version() == _VERSION:
                return _declare(library)
        except (OSError, AttributeError):
            continue
    return None


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer, shape = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Shape)
    turn = (integer, ctypes.c_float)
    library.kv_largest.argtypes = (integer, pointer, shape)
    for verb in ("encode", "decode"):
        for form, extra in (("channels", ()), ("rotated", turn)):
            function: Any = getattr(library, f"kv_{verb}_{form}")
            function.argtypes = (integer, pointer, shape, integer, *extra, pointer)
            function.restype = None
    return library


def _shape(x: F16) -> _Shape:
    if x.ndim != 3 or x.dtype != np.float16 or (x.strides[2] != 2 and x.shape[2] > 1) or 0 in x.shape:
        raise ValueError(f"a plane is float16 (layers, tokens, dim) with dense rows, not {x.dtype} {x.shape}")
    return _Shape(x.strides[0], x.strides[1], *x.shape)


def _check(x: F16, bits: int, section: U8, size: int, *, written: Any) -> None:
    if bits not in oracle.BITS:
        raise ValueError(f"a code has one of {oracle.BITS} bits, not {bits}")
    if section.dtype != np.uint8 or section.shape != (size,) or not section.flags.c_contiguous:
        raise ValueError(f"a plane {x.shape} at {bits} bits needs {size} dense bytes, not {section.shape}")
    if not written.flags.writeable:
        raise ValueError("the destination is read-only")


def _rotation(x: F16, block: int) -> tuple[int, float]:
    if block < 1 or block & (block - 1) or block > oracle.LARGEST_BLOCK or x.shape[2] % block:
        raise ValueError(f"a row of {x.shape[2]} values cannot be rotated in blocks of {block}")
    return block, 1 / math.sqrt(block)
