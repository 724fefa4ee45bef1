"""The kernels that code and decode planes: numpy's, and the C ones built with the package.

Law: whichever is chosen, the bytes and the values are the same; only the time differs. ctypes calls C without the
GIL. C trusts its pointers, so whatever numpy would refuse is refused here first.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from llmaas.kvchunks.codec import kernels_channels as keys
from llmaas.kvchunks.codec import kernels_numpy as oracle
from llmaas.kvchunks.codec.kernels_channels import LARGEST_HEAD, BadWords, RopeRotation
from llmaas.kvchunks.codec.kernels_numpy import F16, F32, U8
from llmaas.native import load_library

_VERSION = 3
"""Of the functions in ``_kvcodec.c``; a library left over from another version is not used."""
_ISA_NAMES = ("c", "c-avx2")


class Kernels(Protocol):
    """Codes planes (layers, tokens, dim) of f16. Formats and sizes: ``kernels_channels`` and ``kernels_numpy``."""

    @property
    def name(self) -> str: ...

    def largest(self, x: F16) -> int: ...

    def encode_channels(self, x: F16, bits: int, rope: RopeRotation | None, weights: F32, out: U8) -> None: ...

    def decode_channels(self, data: U8, bits: int, rope: RopeRotation | None, x: F16) -> None: ...

    def encode_rotated(self, x: F16, bits: int, block: int, out: U8) -> None: ...

    def decode_rotated(self, data: U8, bits: int, block: int, x: F16) -> None: ...


class NumpyKernels:
    """The oracle."""

    name = "numpy"
    largest = staticmethod(oracle.largest)
    encode_channels = staticmethod(keys.encode_channels)
    decode_channels = staticmethod(keys.decode_channels)
    encode_rotated = staticmethod(oracle.encode_rotated)
    decode_rotated = staticmethod(oracle.decode_rotated)


NUMPY: Kernels = NumpyKernels()


class _Shape(ctypes.Structure):
    """``Shape`` of _kvcodec.c."""

    _fields_ = [(name, ctypes.c_ssize_t) for name in ("layer_stride", "token_stride", "layers", "tokens", "dim")]


class _RopeRotation(ctypes.Structure):
    """``RopeRotation`` of _kvcodec.c."""

    _fields_ = (
        ("table", ctypes.c_void_p),
        ("kind", ctypes.c_void_p),
        ("head", ctypes.c_ssize_t),
        ("pairs", ctypes.c_ssize_t),
        ("halves", ctypes.c_int),
    )


@dataclass(frozen=True, slots=True)
class NativeKernels:
    """The C loops for one instruction set."""

    name: str
    _library: ctypes.CDLL
    _isa: int

    def largest(self, x: F16) -> int:
        return int(self._library.kv_largest(self._isa, x.ctypes.data, _shape(x)))

    def encode_channels(self, x: F16, bits: int, rope: RopeRotation | None, weights: F32, out: U8) -> None:
        _check(x, bits, out, keys.channels_bytes(x.shape, bits), written=out)
        if weights.dtype != np.float32 or weights.shape != (x.shape[0], x.shape[2]) or not weights.flags.c_contiguous:
            raise ValueError(f"a plane {x.shape} needs dense float32 weights of every layer and channel")
        memory, c_rope = self._memory(x, encoding=True), _c_rotation(x, rope)
        self._library.kv_encode_channels(
            self._isa,
            x.ctypes.data,
            _shape(x),
            bits,
            c_rope,
            weights.ctypes.data,
            memory.ctypes.data,
            out.ctypes.data,
        )

    def decode_channels(self, data: U8, bits: int, rope: RopeRotation | None, x: F16) -> None:
        _check(x, bits, data, keys.channels_bytes(x.shape, bits), written=x)
        memory, c_rope = self._memory(x, encoding=False), _c_rotation(x, rope)
        if not self._library.kv_decode_channels(
            self._isa, data.ctypes.data, _shape(x), bits, c_rope, memory.ctypes.data, x.ctypes.data
        ):
            raise BadWords("a chunk's channels do not have the bits that it says")

    def _memory(self, x: F16, *, encoding: bool) -> U8:
        return np.empty(self._library.kv_scratch(x.shape[2], encoding), np.uint8)

    def encode_rotated(self, x: F16, bits: int, block: int, out: U8) -> None:
        _check(x, bits, out, oracle.rotated_bytes(x.shape, bits), written=out)
        checked = _block_and_norm(x, block)
        self._library.kv_encode_rotated(self._isa, x.ctypes.data, _shape(x), bits, *checked, out.ctypes.data)

    def decode_rotated(self, data: U8, bits: int, block: int, x: F16) -> None:
        _check(x, bits, data, oracle.rotated_bytes(x.shape, bits), written=x)
        checked = _block_and_norm(x, block)
        self._library.kv_decode_rotated(self._isa, data.ctypes.data, _shape(x), bits, *checked, x.ctypes.data)


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
    return load_library(
        __file__, "_kvcodec", lambda library: library.kv_version() == _VERSION and bool(_declare(library))
    )


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t
    plane, rotation = (integer, pointer, ctypes.POINTER(_Shape)), ctypes.POINTER(_RopeRotation)
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "kv_largest": (integer, plane),
        "kv_scratch": (size, (size, integer)),
        "kv_encode_channels": (None, (*plane, integer, rotation, pointer, pointer, pointer)),
        "kv_decode_channels": (integer, (*plane, integer, rotation, pointer, pointer)),
        "kv_encode_rotated": (None, (*plane, integer, integer, ctypes.c_float, pointer)),
        "kv_decode_rotated": (None, (*plane, integer, integer, ctypes.c_float, pointer)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
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


def _c_rotation(x: F16, rope: RopeRotation | None) -> _RopeRotation:
    if rope is None:
        return _RopeRotation(None, None, x.shape[2], 0, 0)
    table, kind = rope.table, rope.kind
    if (
        table.dtype != np.float32
        or table.shape[1:3] != (oracle.GROUP, 2)
        or not table.flags.c_contiguous
        or kind.dtype != np.uint8
        or kind.shape != (x.shape[0],)
        or not kind.flags.c_contiguous
        or int(kind.max()) >= len(table)
        or not 0 < rope.head <= LARGEST_HEAD
        or rope.head % 2
        or x.shape[2] % rope.head
        or not 0 <= 2 * rope.pairs <= rope.head
    ):
        raise ValueError(f"a plane {x.shape} cannot be rotated by a table {table.shape} of {rope.pairs} pairs")
    return _RopeRotation(table.ctypes.data, kind.ctypes.data, rope.head, rope.pairs, int(rope.halves))


def _block_and_norm(x: F16, block: int) -> tuple[int, float]:
    if block < 1 or block & (block - 1) or block > oracle.LARGEST_BLOCK or x.shape[2] % block:
        raise ValueError(f"a row of {x.shape[2]} values cannot be rotated in blocks of {block}")
    return block, 1 / math.sqrt(block)
