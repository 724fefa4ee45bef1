"""F3. How the K plane and the V plane of a chunk are coded: which kernel, at which bits, and when not at all.

Law: pure. A plane knows one tensor's layout and its codings; it knows no header, key or file.

* K is sensitive per channel (a few channels are large for every token): 64 tokens of one channel share a step
  and a minimum (KIVI, arXiv 2402.02750, section 3).
* V is rotated per token and head by an orthonormal Hadamard matrix, which spreads outliers over the head
  and makes values nearly Gaussian (QuaRot, arXiv 2404.00456, section 3); 64 neighbours of the rotated row share a
  step, with levels that suit such values.

What was measured to choose this, and what was rejected, is in docs/compression.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from llmaas.kvchunks.kernels import Kernels
from llmaas.kvchunks.kernels_numpy import BITS, LARGEST_BLOCK, U8, channels_bytes, rotated_bytes
from llmaas.records import F16

RAW = 0
"""Coding id of plain f16, bit-exact. Every other id is a number of bits."""


class Plane(ABC):
    """One tensor (K or V) of a chunk: shape (n_layer, n_tokens, dim) f16."""

    def __init__(self, n_layer: int, dim: int, largest: float, kernels: Kernels) -> None:
        self._n_layer = n_layer
        self._dim = dim
        self._kernels = kernels
        self._largest = int(np.float16(largest).view(np.uint16))

    @abstractmethod
    def _coded_size(self, bits: int, n_tokens: int) -> int: ...

    @abstractmethod
    def _encode(self, x: F16, bits: int, out: U8) -> None: ...

    @abstractmethod
    def _decode(self, data: U8, bits: int, x: F16) -> None: ...

    def coding(self, bits: int, n_tokens: int) -> int:
        """Id of the coding for nominal ``bits``; RAW where scales and padding would make it no smaller than RAW.

        Raises ValueError if nothing is known for ``bits``.
        """
        if bits == 16:
            return RAW
        if bits not in BITS:
            raise ValueError(f"no coding for {bits} bits; there is {sorted((16, *BITS))}")
        return bits if self.size(bits, n_tokens) < self.size(RAW, n_tokens) else RAW

    def size(self, coding: int, n_tokens: int) -> int:
        """Bytes of the section. Raises KeyError for an unknown coding id."""
        if coding == RAW:
            return 2 * self._n_layer * n_tokens * self._dim
        if coding not in BITS:
            raise KeyError(coding)
        return self._coded_size(coding, n_tokens)

    def codable(self, x: F16) -> bool:
        """Whether groups can hold ``x``: no infinity, no NaN, nothing that would not decode to a finite value."""
        return self._kernels.largest(x) <= self._largest

    def encode(self, x: F16, out: U8, coding: int) -> None:
        """Code ``x`` into the section ``out`` of ``size(coding, n_tokens)`` bytes."""
        if coding == RAW:
            np.copyto(out.view(np.uint16).reshape(x.shape), x.view(np.uint16))
        else:
            self._encode(x, coding, out)

    def decode(self, data: U8, x: F16, coding: int) -> None:
        """Decode the section ``data`` into ``x``, in place."""
        if coding == RAW:
            np.copyto(x.view(np.uint16), data.view(np.uint16).reshape(x.shape))
        else:
            self._decode(data, coding, x)


class ChannelPlane(Plane):
    """K: one channel's values over 64 tokens are a group."""

    def __init__(self, n_layer: int, dim: int, kernels: Kernels) -> None:
        # Half of f16's range: a decoded value may overshoot by half a step without becoming infinite.
        super().__init__(n_layer, dim, 2.0**15, kernels)

    def _coded_size(self, bits: int, n_tokens: int) -> int:
        return channels_bytes((self._n_layer, n_tokens, self._dim), bits)

    def _encode(self, x: F16, bits: int, out: U8) -> None:
        self._kernels.encode_channels(x, bits, out)

    def _decode(self, data: U8, bits: int, x: F16) -> None:
        self._kernels.decode_channels(data, bits, x)


class RotatedPlane(Plane):
    """V: 64 neighbours of one token's rotated row are a group."""

    def __init__(self, n_layer: int, dim: int, head_dim: int, kernels: Kernels) -> None:
        self._block = rotation_size(head_dim)
        # The step chosen errs by no more than the length of the block, and a block is at most sqrt(size) times
        # its largest value long: what is decoded stays below 2^15.
        super().__init__(n_layer, dim, 2.0**14 / math.sqrt(self._block), kernels)

    def _coded_size(self, bits: int, n_tokens: int) -> int:
        return rotated_bytes((self._n_layer, n_tokens, self._dim), bits)

    def _encode(self, x: F16, bits: int, out: U8) -> None:
        self._kernels.encode_rotated(x, bits, self._block, out)

    def _decode(self, data: U8, bits: int, x: F16) -> None:
        self._kernels.decode_rotated(data, bits, self._block, x)


def rotation_size(head_dim: int) -> int:
    """The largest power of two, at most 128, that divides ``head_dim``."""
    return math.gcd(head_dim, LARGEST_BLOCK)
