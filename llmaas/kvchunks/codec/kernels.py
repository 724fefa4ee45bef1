"""The kernels that code and decode planes, and which of them this machine uses.

Law: whichever is chosen, the bytes and the values are the same; only the time differs. Without the C library, numpy
does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec import kernels_channels, kernels_native, kernels_numpy, whole_chunks
from llmaas.kvchunks.codec.kernels_channels import RopeRotation
from llmaas.kvchunks.codec.kernels_numpy import F16, F32, U8
from llmaas.kvchunks.codec.whole_chunks import ChunkForm, Placed


class Kernels(Protocol):
    """Codes planes: x is (layers, tokens, dim) f16.

    ``kernels_channels`` describes arguments and format of ``*_channels``, ``kernels_numpy`` those of ``*_rotated``.
    A load decodes by ``decode_chunks`` only (``whole_chunks``): K and V of several chunks at once.
    """

    @property
    def name(self) -> str: ...

    def largest(self, x: F16) -> int: ...

    def encode_channels(self, x: F16, bits: int, rope: RopeRotation | None, weights: F32, out: U8) -> None: ...

    def decode_channels(self, data: U8, bits: int, rope: RopeRotation | None, x: F16) -> None: ...

    def encode_rotated(self, x: F16, bits: int, block: int, out: U8) -> None: ...

    def decode_rotated(self, data: U8, bits: int, block: int, x: F16) -> None: ...

    def decode_chunks(self, form: ChunkForm, chunks: Sequence[Placed], slab: KvSlab) -> list[int]: ...


class NumpyKernels:
    """The oracle: it defines the formats."""

    name = "numpy"
    largest = staticmethod(kernels_numpy.largest)
    encode_channels = staticmethod(kernels_channels.encode_channels)
    decode_channels = staticmethod(kernels_channels.decode_channels)
    encode_rotated = staticmethod(kernels_numpy.encode_rotated)
    decode_rotated = staticmethod(kernels_numpy.decode_rotated)
    decode_chunks = staticmethod(whole_chunks.decode_chunks)


NUMPY: Kernels = NumpyKernels()


@lru_cache(maxsize=1)
def available() -> tuple[Kernels, ...]:
    """All kernels of this installation that run on this machine, the slowest first."""
    return (NUMPY, *kernels_native.load())


def best() -> Kernels:
    """The fastest kernels of this machine."""
    return available()[-1]
