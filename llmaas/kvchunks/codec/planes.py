"""How the K plane and the V plane of a chunk are coded: by which kernel, with which bits, and when not at all.
``whole_chunks`` decodes them.

Law: pure. A plane knows the layout and the codings of one tensor; it knows no header, key or file.

* K is sensitive per channel: a few channels are large for every token, and queries look at few of them. So 64 tokens of
  one channel, un-rotated from RoPE, share a step and a minimum (KIVI, arXiv 2402.02750, section 3), and the bits of a
  layer are allocated to its channels by how much they matter (``kernels_channels``).
* V is rotated per token and head by an orthonormal Hadamard matrix. That spreads outliers over the head and makes
  values nearly Gaussian (QuaRot, arXiv 2404.00456, section 3). 64 neighbours of the rotated row share a step, with
  levels that suit such values (``kernels_numpy``).

docs/compression.md has the measurements behind this, and what was rejected.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from llmaas.kv_arrays import F16, F32, Rope
from llmaas.kvchunks.codec.kernels import Kernels
from llmaas.kvchunks.codec.kernels_channels import LARGEST_HEAD, RopeRotation, channels_bytes
from llmaas.kvchunks.codec.kernels_numpy import BITS, GROUP, LARGEST_BLOCK, U8, rotated_bytes
from llmaas.kvchunks.codec.whole_chunks import RAW, n_plain, section_bytes

_INFINITY = 0x7C00
"""As an f16 bit pattern."""


class Plane(ABC):
    """One tensor (K or V) of a chunk: shape (n_layer, n_tokens, dim) f16."""

    _coded_bytes: Callable[[tuple[int, int, int], int], int]
    """Bytes of what is coded, by its shape and coding."""

    def __init__(self, n_layer: int, dim: int, largest: float, kernels: Kernels) -> None:
        self._n_layer = n_layer
        self._dim = dim
        self._kernels = kernels
        self._largest = int(np.float16(largest).view(np.uint16))

    @abstractmethod
    def _encode(self, x: F16, bits: int, out: U8) -> None: ...

    def coding(self, bits: int, n_tokens: int, sinks: int) -> int:
        """Id of the coding for nominal ``bits``: RAW where scales and padding would make it no smaller than RAW.

        Raises ValueError for bits without a coding.
        """
        if bits == 16:
            return RAW
        if bits not in BITS:
            raise ValueError(f"no coding for {bits} bits; there is {sorted((16, *BITS))}")
        return bits if self.size(bits, n_tokens, sinks) < self.size(RAW, n_tokens, sinks) else RAW

    def size(self, coding: int, n_tokens: int, sinks: int) -> int:
        """Bytes of the section."""
        return section_bytes((self._n_layer, n_tokens, self._dim), coding, sinks, self._coded_bytes)

    def codable(self, x: F16) -> bool:
        """Whether groups can hold ``x``: it has no infinity, no NaN, and no value that would decode to either."""
        return self._kernels.largest(x) <= self._largest

    def finite(self, x: F16) -> bool:
        """Whether ``x`` has no infinity and no NaN."""
        return self._kernels.largest(x) < _INFINITY

    def encode(self, x: F16, out: U8, coding: int, sinks: int) -> None:
        """Code ``x`` into the section ``out`` of ``size(coding, n_tokens, sinks)`` bytes."""
        n_raw = n_plain(x.shape[1], coding, sinks)
        n_bytes = self.size(RAW, n_raw, 0)
        raw = x[:, :n_raw]
        np.copyto(out[:n_bytes].view(np.uint16).reshape(raw.shape), raw.view(np.uint16))
        if n_raw < x.shape[1]:
            self._encode(x[:, n_raw:], coding, out[n_bytes:])


class ChannelPlane(Plane):
    """K: one channel's values over 64 tokens are a group."""

    _coded_bytes = staticmethod(channels_bytes)

    def __init__(self, n_layer: int, dim: int, rope: RopeRotation | None, kernels: Kernels) -> None:
        # Rotating may lengthen a value by the root of two, and a range is twice a value: both stay in f16.
        super().__init__(n_layer, dim, 2.0**13, kernels)
        self._rope = rope
        self.weights: F32 = np.ones((n_layer, dim), np.float32)

    def _encode(self, x: F16, bits: int, out: U8) -> None:
        self._kernels.encode_channels(x, bits, self._rope, self.weights, out)


class RotatedPlane(Plane):
    """V: 64 neighbours of one token's rotated row are a group."""

    _coded_bytes = staticmethod(rotated_bytes)

    def __init__(self, n_layer: int, dim: int, head_dim: int, kernels: Kernels) -> None:
        self._block = rotation_size(head_dim)
        # A block is at most sqrt(size) times as long as its largest value, and the error of the chosen step is no
        # longer than the block. So decoded values stay below 2^15.
        super().__init__(n_layer, dim, 2.0**14 / math.sqrt(self._block), kernels)

    def _encode(self, x: F16, bits: int, out: U8) -> None:
        self._kernels.encode_rotated(x, bits, self._block, out)


def rotation_size(head_dim: int) -> int:
    """Size of the blocks that are rotated: the largest power of two, at most 128, that divides ``head_dim``.

    >>> rotation_size(64), rotation_size(80), rotation_size(256)
    (64, 16, 128)
    """
    return math.gcd(head_dim, LARGEST_BLOCK)


def rope_rotation(rope: Rope, head_dim: int) -> RopeRotation | None:
    """The rotation for each place in a group of 64; None for heads that the kernels cannot rotate."""
    n_layer, pairs = rope.angles.shape
    if head_dim > LARGEST_HEAD or head_dim % 2 or 2 * pairs > head_dim:
        return None
    kinds, kind = np.unique(rope.angles, axis=0, return_inverse=True)
    if len(kinds) > 255:
        return None
    angle = kinds.astype(np.float64)[:, None] * np.arange(GROUP)[:, None]
    table = np.zeros((len(kinds), GROUP, 2, head_dim), np.float32)
    table[:, :, 0] = 1
    first = np.arange(pairs) if rope.halves else 2 * np.arange(pairs)
    second = first + (pairs if rope.halves else 1)
    table[:, :, 0, first] = table[:, :, 0, second] = np.cos(angle)
    table[:, :, 1, first], table[:, :, 1, second] = -np.sin(angle), np.sin(angle)
    return RopeRotation(table, kind.reshape(n_layer).astype(np.uint8), pairs, rope.halves)
