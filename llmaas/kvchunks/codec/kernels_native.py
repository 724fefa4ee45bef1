"""The C kernels (``_kvcodec.c``), called by ctypes, which releases the GIL.

Law: C trusts its pointers, so whatever numpy would refuse is refused here first.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmaas.frozen import frozen
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.kernels_channels import LARGEST_HEAD, BadWords, RopeRotation, channels_bytes
from llmaas.kvchunks.codec.kernels_numpy import BITS, F16, F32, GROUP, LARGEST_BLOCK, U8, rotated_bytes
from llmaas.kvchunks.codec.whole_chunks import ChunkForm, Placed, check_placed
from llmaas.native import load_library

_VERSION = 3
"""Version of the functions in ``_kvcodec.c``. A library that is left over from another version is not used."""
_ISA_NAMES = ("c", "c-avx2", "c-avx512")


class _Shape(ctypes.Structure):
    """``Shape`` of _kvcodec.c."""

    _fields_ = [(name, ctypes.c_ssize_t) for name in ("layer_stride", "token_stride", "layers", "tokens", "dim")]


class _CRope(ctypes.Structure):
    """``Rope`` of _kvcodec.c."""

    _fields_ = (
        ("table", ctypes.c_void_p),
        ("kind", ctypes.c_void_p),
        ("head", ctypes.c_ssize_t),
        ("pairs", ctypes.c_ssize_t),
        ("halves", ctypes.c_int),
    )


class _CSlab(ctypes.Structure):
    """``Slab`` of _kvcodec.c."""

    _fields_ = (
        ("k_shape", _Shape),
        ("v_shape", _Shape),
        ("rope", _CRope),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("block", ctypes.c_ssize_t),
        ("norm", ctypes.c_float),
    )


_CHUNK = struct.Struct("@Pnnniiii")
"""``Chunk`` of _kvcodec.c."""
_BAD = struct.Struct(f"@{_CHUNK.size - 4}xi")
"""The field ``bad`` of one."""


@frozen
class NativeKernels:
    """The C loops for one instruction set. Each method raises ValueError for arguments that do not fit together."""

    name: str
    _library: ctypes.CDLL
    _isa: int

    def largest(self, x: F16) -> int:
        return int(self._library.kv_largest(self._isa, x.ctypes.data, _shape(x)))

    def encode_channels(self, x: F16, bits: int, rope: RopeRotation | None, weights: F32, out: U8) -> None:
        _check(x, bits, out, channels_bytes(x.shape, bits), written=out)
        if weights.dtype != np.float32 or weights.shape != (x.shape[0], x.shape[2]) or not weights.flags.c_contiguous:
            raise ValueError(f"a plane {x.shape} needs dense float32 weights of every layer and channel")
        memory, c_rope = self._memory(x, encoding=True), _c_rope(x, rope)
        source, target = x.ctypes.data, out.ctypes.data
        self._library.kv_encode_channels(
            self._isa, source, _shape(x), bits, c_rope, weights.ctypes.data, memory.ctypes.data, target
        )

    def decode_channels(self, data: U8, bits: int, rope: RopeRotation | None, x: F16) -> None:
        _check(x, bits, data, channels_bytes(x.shape, bits), written=x)
        memory, c_rope = self._memory(x, encoding=False), _c_rope(x, rope)
        if not self._library.kv_decode_channels(
            self._isa, data.ctypes.data, _shape(x), bits, c_rope, memory.ctypes.data, x.ctypes.data
        ):
            raise BadWords()

    def _memory(self, x: F16, *, encoding: bool) -> U8:
        """Scratch memory, which the C functions do not allocate themselves."""
        return np.empty(self._library.kv_scratch(x.shape[2], encoding), np.uint8)

    def encode_rotated(self, x: F16, bits: int, block: int, out: U8) -> None:
        _check(x, bits, out, rotated_bytes(x.shape, bits), written=out)
        norm = _hadamard_norm(x, block)
        self._library.kv_encode_rotated(self._isa, x.ctypes.data, _shape(x), bits, block, norm, out.ctypes.data)

    def decode_rotated(self, data: U8, bits: int, block: int, x: F16) -> None:
        _check(x, bits, data, rotated_bytes(x.shape, bits), written=x)
        norm = _hadamard_norm(x, block)
        self._library.kv_decode_rotated(self._isa, data.ctypes.data, _shape(x), bits, block, norm, x.ctypes.data)

    def decode_chunks(self, form: ChunkForm, chunks: Sequence[Placed], slab: KvSlab) -> list[int]:
        """One call for all of them: each gives the GIL away, and takes long to get it back while others decode."""
        c_slab, memory = _c_slab(form, slab), self._memory(slab.k, encoding=False)
        made = bytearray(_CHUNK.size * len(chunks))
        for number, (chunk, first) in enumerate(chunks):
            check_placed(chunk, first, slab)
            body, n_tokens, k, v, sinks, k_bytes = chunk
            address = body.ctypes.data
            _CHUNK.pack_into(made, number * _CHUNK.size, address, k_bytes, first, n_tokens, k, v, sinks, 0)
        c_chunks = (ctypes.c_char * len(made)).from_buffer(made)
        if not self._library.kv_decode_chunks(self._isa, c_slab, c_chunks, len(chunks), memory.ctypes.data):
            return []
        return [number for number, (bad,) in enumerate(_BAD.iter_unpack(made)) if bad]


def load() -> tuple[NativeKernels, ...]:
    """The C kernels for every instruction set of this machine, the slowest first; none if there is no library."""
    library = load_library(__file__, "_kvcodec", lambda library: library.kv_version() == _VERSION and _declare(library))
    if library is None:
        return ()
    return tuple(NativeKernels(_ISA_NAMES[isa], library, isa) for isa in range(library.kv_isa() + 1))


def _declare(library: ctypes.CDLL) -> bool:
    """Tell ctypes the signatures. Raises AttributeError if the library lacks a function."""
    pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t
    plane, rope = (integer, pointer, ctypes.POINTER(_Shape)), ctypes.POINTER(_CRope)
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "kv_largest": (integer, plane),
        "kv_scratch": (size, (size, integer)),
        "kv_encode_channels": (None, (*plane, integer, rope, pointer, pointer, pointer)),
        "kv_decode_channels": (integer, (*plane, integer, rope, pointer, pointer)),
        "kv_encode_rotated": (None, (*plane, integer, integer, ctypes.c_float, pointer)),
        "kv_decode_rotated": (None, (*plane, integer, integer, ctypes.c_float, pointer)),
        "kv_decode_chunks": (size, (integer, ctypes.POINTER(_CSlab), pointer, size, pointer)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return True


# -- what C may be given ------------------------------------------------------------------------


def _shape(x: F16) -> _Shape:
    if x.ndim != 3 or x.dtype != np.float16 or (x.strides[2] != 2 and x.shape[2] > 1) or 0 in x.shape:
        raise ValueError(f"a plane is float16 (layers, tokens, dim) with dense rows, not {x.dtype} {x.shape}")
    return _Shape(x.strides[0], x.strides[1], *x.shape)


def _check(x: F16, bits: int, section: U8, size: int, *, written: Any) -> None:
    if bits not in BITS:
        raise ValueError(f"a code has one of {BITS} bits, not {bits}")
    if section.dtype != np.uint8 or section.shape != (size,) or not section.flags.c_contiguous:
        raise ValueError(f"a plane {x.shape} at {bits} bits needs {size} dense bytes, not {section.shape}")
    if not written.flags.writeable:
        raise ValueError("the destination is read-only")


def _c_slab(form: ChunkForm, slab: KvSlab) -> _CSlab:
    k, v = slab.k, slab.v
    if not (k.flags.writeable and v.flags.writeable):
        raise ValueError("the destination is read-only")
    k_shape, v_shape = _shape(k), _shape(v)
    if k.shape[:2] != v.shape[:2]:
        raise ValueError(f"a slab has as many layers and tokens of K as of V, not {k.shape} and {v.shape}")
    norm = _hadamard_norm(v, form.block)
    return _CSlab(k_shape, v_shape, _c_rope(k, form.rope), k.ctypes.data, v.ctypes.data, form.block, norm)


def _c_rope(x: F16, rope: RopeRotation | None) -> _CRope:
    if rope is None:
        return _CRope(None, None, x.shape[2], 0, 0)
    table, kind = rope.table, rope.kind
    dense = table.flags.c_contiguous and kind.flags.c_contiguous
    types = table.dtype == np.float32 and kind.dtype == np.uint8
    shapes = table.shape[1:3] == (GROUP, 2) and kind.shape == (x.shape[0],)
    if not (dense and types and shapes and int(kind.max()) < len(table) and _rotates(rope, x.shape[2])):
        raise ValueError(f"a plane {x.shape} cannot be rotated by a table {table.shape} of {rope.pairs} pairs")
    return _CRope(table.ctypes.data, kind.ctypes.data, rope.head, rope.pairs, int(rope.halves))


def _rotates(rope: RopeRotation, dim: int) -> bool:
    """Whether the rotation fits rows of ``dim`` channels: whole heads, of an even size, with all pairs inside."""
    head = rope.head
    return 0 < head <= LARGEST_HEAD and head % 2 == 0 and dim % head == 0 and 0 <= 2 * rope.pairs <= head


def _hadamard_norm(x: F16, block: int) -> float:
    """The factor that makes the Hadamard rotation of blocks orthonormal."""
    if block < 1 or block & (block - 1) or block > LARGEST_BLOCK or x.shape[2] % block:
        raise ValueError(f"a row of {x.shape[2]} values cannot be rotated in blocks of {block}")
    return 1 / math.sqrt(block)
