"""F3. How the K plane and the V plane of a chunk become rows of 32-value groups, and back.

Law: pure. A plane knows one tensor's layout and the table of codings; it knows no header, key or file.

* K is sensitive per channel (a few channels are large for every token), so it is transposed: groups run
  along TOKENS, 32 tokens of one channel share a scale (KIVI, arXiv 2402.02750, section 3). A ragged chunk
  repeats its last token up to a multiple of 32; zeros would widen the range of every group they join.
* V is rotated per token and head by an orthonormal Hadamard matrix, which spreads outliers over the head
  (QuaRot, arXiv 2404.00456, section 3), and grouped along the rotated ROW. A ragged row repeats its last value.

Sections hold layer after layer. Layers go through the kernels a few at a time, so that the float32 scratch stays
in the L2 cache and small however deep the model is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmaas.kvchunks.kernels import F32, GROUP, Kernel, Kernels
from llmaas.records import F16

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]

RAW = 0
"""Coding id of plain f16, bit-exact."""

_SLICE_VALUES = 1 << 17
"""Values coded at a time, unless one layer alone has more."""
_LARGEST_ROTATION = 128
_GEMM_ONE_THREAD = 1 << 18
"""OpenBLAS keeps an m*n*k product up to this on the calling thread (65536 * GEMM_MULTITHREAD_THRESHOLD)."""


@dataclass(frozen=True, slots=True)
class Coding:
    """One way to code groups of 32 float32 values in ``block_bytes`` bytes."""

    id: int
    bits: int
    block_bytes: int
    quantise: Kernel
    dequantise: Kernel


def codings(kernels: Kernels) -> tuple[Coding, ...]:
    """The table of group codings. A new one is a new line with a new id; ids are for ever, they are on disk."""
    return (
        Coding(1, 8, 34, kernels.quantise_q8_0, kernels.dequantise_q8_0),
        Coding(2, 4, 20, kernels.quantise_q4_1, kernels.dequantise_q4_1),
    )


@dataclass(slots=True)
class Scratch:
    """Buffers of one running encode or decode."""

    half: U16 = field(default_factory=lambda: np.empty(0, np.uint16))
    one: F32 = field(default_factory=lambda: np.empty(0, np.float32))
    two: F32 = field(default_factory=lambda: np.empty(0, np.float32))

    def reserve(self, values: int) -> None:
        if self.half.size < values:
            self.half = np.empty(values, np.uint16)
            self.one = np.empty(values, np.float32)
            self.two = np.empty(values, np.float32)


class Plane(ABC):
    """One tensor (K or V) of a chunk: shape (n_layer, n_tokens, dim) f16."""

    def __init__(self, n_layer: int, dim: int, largest: float, kernels: Kernels) -> None:
        self.dim = dim
        self._n_layer = n_layer
        self._kernels = kernels
        self._codings = {coding.id: coding for coding in codings(kernels)}
        self._by_bits = {coding.bits: coding.id for coding in self._codings.values()} | {16: RAW}
        self._largest = int(np.float16(largest).view(np.uint16))

    @abstractmethod
    def layer_values(self, n_tokens: int) -> int:
        """Values of one layer, with the padding."""

    @abstractmethod
    def _quantise(self, x: U16, out: U8, coding: Coding, scratch: Scratch) -> None:
        """Code some layers ``x`` (layers, tokens, dim) into ``out``."""

    @abstractmethod
    def _dequantise(self, data: U8, x: U16, coding: Coding, scratch: Scratch) -> None:
        """Decode ``data`` into some layers ``x`` (layers, tokens, dim)."""

    def coding(self, bits: int, n_tokens: int) -> int:
        """Id of the coding for nominal ``bits``; RAW where padding would make it larger than RAW.

        Raises ValueError if nothing is known for ``bits``.
        """
        if bits not in self._by_bits:
            raise ValueError(f"no coding for {bits} bits; there is {sorted(self._by_bits)}")
        chosen = self._by_bits[bits]
        return chosen if self.size(chosen, n_tokens) < self.size(RAW, n_tokens) else RAW

    def size(self, coding: int, n_tokens: int) -> int:
        """Bytes of the section. Raises KeyError for an unknown coding id."""
        return self._n_layer * self._layer_bytes(coding, n_tokens)

    def codable(self, x: F16) -> bool:
        """Whether groups can hold ``x``: no infinity, no NaN, nothing that f16 scales could not span.

        As integers, f16 patterns of one sign are ordered by magnitude, NaN and infinity on top.
        """
        bits = x.view(np.uint16)
        return max(int(bits.view(np.int16).max()), int(bits.max()) & 0x7FFF) <= self._largest

    def encode(self, x: F16, out: U8, coding: int, scratch: Scratch) -> None:
        """Code ``x`` into the section ``out`` of ``size(coding, n_tokens)`` bytes."""
        patterns = x.view(np.uint16)
        if coding == RAW:
            np.copyto(out.view(np.uint16).reshape(x.shape), patterns)
            return
        for layers, section in self._slices(x.shape[1], out, coding, scratch):
            self._quantise(patterns[layers], section, self._codings[coding], scratch)

    def decode(self, data: U8, x: F16, coding: int, scratch: Scratch) -> None:
        """Decode the section ``data`` into ``x``, in place."""
        patterns = x.view(np.uint16)
        if coding == RAW:
            np.copyto(patterns, data.view(np.uint16).reshape(x.shape))
            return
        for layers, section in self._slices(x.shape[1], data, coding, scratch):
            self._dequantise(section, patterns[layers], self._codings[coding], scratch)

    def _slices(self, n_tokens: int, data: U8, coding: int, scratch: Scratch) -> Iterator[tuple[slice, U8]]:
        values, width = self.layer_values(n_tokens), self._layer_bytes(coding, n_tokens)
        step = max(1, _SLICE_VALUES // values)
        scratch.reserve(values * min(step, self._n_layer))
        for start in range(0, self._n_layer, step):
            stop = min(start + step, self._n_layer)
            yield slice(start, stop), data[start * width : stop * width]

    def _layer_bytes(self, coding: int, n_tokens: int) -> int:
        if coding == RAW:
            return 2 * n_tokens * self.dim
        return self.layer_values(n_tokens) // GROUP * self._codings[coding].block_bytes


class ChannelPlane(Plane):
    """K: one channel's values over 32 tokens are a group. A layer is (dim, tokens, padded)."""

    def __init__(self, n_layer: int, dim: int, kernels: Kernels) -> None:
        # Half of f16's range: a decoded value may overshoot by half a step without becoming infinite.
        super().__init__(n_layer, dim, 2.0**15, kernels)

    def layer_values(self, n_tokens: int) -> int:
        return self.dim * _padded(n_tokens)

    def _quantise(self, x: U16, out: U8, coding: Coding, scratch: Scratch) -> None:
        layers, tokens, dim = x.shape
        shape = (layers, dim, _padded(tokens))
        half, rows = scratch.half[: math.prod(shape)], scratch.one[: math.prod(shape)]
        channels = half.reshape(shape)
        channels[:, :, :tokens] = x.transpose(0, 2, 1)  # as f16: transposing float32 moves twice the bytes
        channels[:, :, tokens:] = channels[:, :, tokens - 1 : tokens]
        self._kernels.to_f32(half, rows)
        coding.quantise(rows, out)

    def _dequantise(self, data: U8, x: U16, coding: Coding, scratch: Scratch) -> None:
        layers, tokens, dim = x.shape
        shape = (layers, dim, _padded(tokens))
        half, rows = scratch.half[: math.prod(shape)], scratch.one[: math.prod(shape)]
        coding.dequantise(data, rows)
        self._kernels.to_f16(rows, half)
        x[...] = half.reshape(shape)[:, :, :tokens].transpose(0, 2, 1)


class RotatedPlane(Plane):
    """V: 32 neighbours of one token's rotated row are a group. A layer is (tokens, dim, padded)."""

    def __init__(self, n_layer: int, dim: int, head_dim: int, kernels: Kernels) -> None:
        self._hadamard = hadamard(rotation_size(head_dim))
        # A rotated value grows by up to sqrt(block), so the limit is that much lower than K's.
        super().__init__(n_layer, dim, 2.0**15 / math.sqrt(len(self._hadamard)), kernels)

    def layer_values(self, n_tokens: int) -> int:
        return n_tokens * _padded(self.dim)

    def _quantise(self, x: U16, out: U8, coding: Coding, scratch: Scratch) -> None:
        half, plain, rotated = scratch.half[: x.size], scratch.one[: x.size], scratch.two[: x.size]
        half.reshape(x.shape)[...] = x
        self._kernels.to_f32(half, plain)
        self._rotate(plain, rotated)
        if self.dim % GROUP:
            narrow = rotated.reshape(-1, self.dim)
            padded = scratch.one[: len(narrow) * _padded(self.dim)].reshape(len(narrow), -1)
            padded[:, : self.dim] = narrow
            padded[:, self.dim :] = narrow[:, -1:]
            rotated = padded.reshape(-1)
        coding.quantise(rotated, out)

    def _dequantise(self, data: U8, x: U16, coding: Coding, scratch: Scratch) -> None:
        half, plain, rotated = scratch.half[: x.size], scratch.two[: x.size], scratch.one[: x.size]
        if self.dim % GROUP:
            rows = x.size // self.dim
            padded = scratch.two[: rows * _padded(self.dim)]
            coding.dequantise(data, padded)
            rotated.reshape(rows, self.dim)[...] = padded.reshape(rows, -1)[:, : self.dim]
        else:
            coding.dequantise(data, rotated)
        self._rotate(rotated, plain)
        self._kernels.to_f16(plain, half)
        x[...] = half.reshape(x.shape)

    def _rotate(self, src: F32, dst: F32) -> None:
        """Multiply each run of ``block`` values by the Hadamard matrix, which is its own inverse.

        As stacks of small products: each stays on this thread (workers must not start BLAS threads of their own).
        A butterfly in numpy needs 2 log2(block) passes over memory: 9 times slower.
        """
        block = len(self._hadamard)
        per_product = _GEMM_ONE_THREAD // (block * block)
        whole = src.size // block // per_product * per_product * block
        stack = (-1, per_product, block)
        if whole:
            np.matmul(src[:whole].reshape(stack), self._hadamard, out=dst[:whole].reshape(stack))
        if whole < src.size:
            np.matmul(src[whole:].reshape(-1, block), self._hadamard, out=dst[whole:].reshape(-1, block))


def rotation_size(head_dim: int) -> int:
    """The largest power of two, at most 128, that divides ``head_dim``."""
    return math.gcd(head_dim, _LARGEST_ROTATION)


def hadamard(size: int) -> F32:
    """The orthonormal, symmetric Hadamard matrix of a power of two (Sylvester's construction)."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.ascontiguousarray(matrix / np.float32(math.sqrt(size)))


def _padded(n: int) -> int:
    return -(-n // GROUP) * GROUP
