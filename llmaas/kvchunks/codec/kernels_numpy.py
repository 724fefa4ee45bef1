"""The format of coded values (V), and the numpy kernels that define it; keys have ``kernels_channels``.

Law: a kernel reads one array and writes another; it keeps nothing. This is the oracle of the C kernels
(``_kvcodec.c``), which do the same float32 operations in the same order and so make the same bytes and the same values.
It is the fallback where there are none.

x is a plane (layers, tokens, dim) of f16, strided or not. A section holds layer after layer, each:

    | step  f16[tokens][groups] | codes u8[units][bits][dim] |
      y = level(2 code + 1 - 2^bits) * step         a group is 64 neighbours of a rotated row
      x = each block of y through a Hadamard matrix, divided by the root of its size

A unit is 8 tokens: 8 codes of b bits are b bytes, channel beside channel, so packing needs no shuffles. The bits of a
code are cut into fields of 8, 4, 2 and 1 bits (5 = 4 + 1, low bits first). The field of width w of token t lies in byte
t % w of the w bytes of that field, at bit t // w * w. A unit with fewer tokens is filled up with code 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]

BITS = (8, 6, 5, 4, 3, 2)
"""Bits that a code may have."""
GROUP = 64
"""Values that share a step."""
UNIT = 8
"""Tokens packed together."""
LARGEST_BLOCK = 128
"""Largest block of neighbours that a Hadamard rotation mixes."""

_CURVE = {2: 0.014, 3: 0.008, 4: 0.0018, 5: 0.0003, 6: 0.0, 8: 0.0}
"""By bits: level(s) = s + curve * s^3. Rotated values are nearly Gaussian, and these levels are within 2 % of the best
ones (of Lloyd and Max)."""
_START = {2: 0.65, 3: 0.85}
"""By bits: first guess of a step, relative to the step that reaches the largest value (otherwise 1)."""
_TRIES = 2
"""Steps that are tried for each group."""


def rotated_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a V section of ``shape`` (layers, tokens, dim)."""
    layers, tokens, dim = shape
    return layers * (2 * tokens * -(-dim // GROUP) + bits * dim * -(-tokens // UNIT))


def largest(x: F16) -> int:
    """The largest magnitude in x as an f16 bit pattern. Patterns are ordered like magnitudes; NaN is above infinity."""
    patterns = x.view(np.uint16)
    return max(int(patterns.view(np.int16).max()), int(patterns.max()) & 0x7FFF)


def encode_rotated(x: F16, bits: int, block: int, out: U8) -> None:
    """Rotate each ``block`` of a row, then code every group with the better of two steps.

    The second step is the least-squares fit to the codes of the first: one iteration of Lloyd's algorithm. ``out`` has
    ``rotated_bytes(x.shape, bits)`` bytes.
    """
    layers, tokens, dim = x.shape
    steps, units = _rotated_views(out, x.shape, bits)
    row = np.zeros((layers, tokens, steps.shape[2] * GROUP), np.float32)
    row[..., :dim] = _rotate(x.astype(np.float32), block) * _norm(block)
    y = row.reshape(layers, tokens, -1, GROUP)
    mask = (np.arange(row.shape[2]) < dim).astype(np.float32).reshape(-1, GROUP)
    magnitude = np.abs(y)
    start = np.float32(_START.get(bits, 1)) / _level(np.float32((1 << bits) - 1), bits)
    step = to_half(magnitude.max(axis=-1) * start).astype(np.float32)
    best, least = step, np.full(step.shape, np.inf, np.float32)
    for _ in range(_TRIES):
        level = _level((2 * _nearest(magnitude, step, bits) + 1).astype(np.float32), bits) * mask
        off = magnitude - level * step[..., None]
        error = _total(off * off)
        best, least = np.where(error < least, step, best), np.minimum(error, least)
        step = to_half(_total(magnitude * level) / _total(level * level)).astype(np.float32)
    steps[...] = best
    k, half = _nearest(magnitude, best, bits), 1 << (bits - 1)
    codes = np.zeros((layers, units.shape[1] * UNIT, dim), np.uint8)
    codes[:, :tokens] = np.where(y < 0, half - 1 - k, half + k).reshape(row.shape)[..., :dim]
    _pack(codes, bits, units)


def decode_rotated(data: U8, bits: int, block: int, x: F16) -> None:
    """Decode the section ``data`` into ``x``."""
    _, tokens, dim = x.shape
    steps, units = _rotated_views(data, x.shape, bits)
    s = 2 * _unpack(units, bits)[:, :tokens].astype(np.int32) - ((1 << bits) - 1)
    scale = np.repeat(steps.astype(np.float32) * _norm(block), GROUP, axis=2)[..., :dim]
    x[...] = to_half(_rotate(_level(s.astype(np.float32), bits) * scale, block))


# -- layout -----------------------------------------------------------------------------------


def _rotated_views(section: U8, shape: tuple[int, ...], bits: int) -> tuple[F16, U8]:
    layers, tokens, dim = shape
    groups = -(-dim // GROUP)
    rows = section.reshape(layers, -1)
    steps = rows[:, : 2 * tokens * groups].view(np.float16).reshape(layers, tokens, groups)
    return steps, rows[:, 2 * tokens * groups :].reshape(layers, -1, bits, dim)


def _fields(bits: int) -> list[tuple[int, int]]:
    """(width, first bit) of the fields of a code; the first bit is also the field's first byte in a unit."""
    return [(width, bits // (2 * width) * 2 * width) for width in (8, 4, 2, 1) if bits & width]


def _pack(codes: U8, bits: int, units: U8) -> None:
    layers, count, _, dim = units.shape
    for width, low in _fields(bits):
        by_row = (codes >> low & (1 << width) - 1).reshape(layers, count, UNIT // width, width, dim)
        shifts = np.arange(0, UNIT, width, dtype=np.uint8)[:, None, None]
        units[:, :, low : low + width] = np.bitwise_or.reduce(by_row << shifts, axis=2)


def _unpack(units: U8, bits: int) -> U8:
    layers, count, _, dim = units.shape
    codes = np.zeros((layers, count, UNIT, dim), np.uint8)
    for width, low in _fields(bits):
        shifts = np.arange(0, UNIT, width, dtype=np.uint8)[:, None, None]
        fields = units[:, :, None, low : low + width] >> shifts & (1 << width) - 1
        codes |= fields.reshape(codes.shape) << low
    return codes.reshape(layers, count * UNIT, dim)


# -- arithmetic: the C kernels repeat each operation in this order -------------------------------------


def to_half(x: Any) -> F16:
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(x, np.float32).astype(np.float16)


def inverse(step: F32) -> F32:
    return np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)


def _norm(block: int) -> np.float32:
    return np.float32(1 / math.sqrt(block))


def _rotate(x: F32, block: int) -> F32:
    """Multiply each block by Sylvester's Hadamard matrix, butterfly by butterfly; not normalised."""
    h = 1
    while h < block:
        pairs = x.reshape(*x.shape[:-1], -1, 2, h)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack((a + b, a - b), axis=-2).reshape(x.shape)
        h *= 2
    return x


def _level(s: Any, bits: int) -> Any:
    return s * (np.float32(1) + np.float32(_CURVE[bits]) * (s * s))


def _nearest(magnitude: F32, step: F32, bits: int) -> npt.NDArray[np.int32]:
    """The positive level, 0 .. 2^(bits-1) - 1, that is nearest to each magnitude."""
    u = magnitude * inverse(step)[..., None]
    half = 1 << (bits - 1)
    if not _CURVE[bits]:
        return np.minimum((u * np.float32(0.5)).astype(np.int32), half - 1)
    k = np.zeros(u.shape, np.int32)
    for i in range(1, half):
        below, above = _level(np.float32(2 * i - 1), bits), _level(np.float32(2 * i + 1), bits)
        k += u > np.float32(0.5) * (below + above)
    return k


def _total(x: F32) -> F32:
    """Sums of 64 values each, added in the order in which vectors of 8 add them."""
    columns = x.reshape(*x.shape[:-1], 8, 8)
    total = columns[..., 0, :].copy()
    for i in range(1, 8):
        total += columns[..., i, :]
    for h in (4, 2, 1):
        total = total[..., :h] + total[..., h : 2 * h]
    return total[..., 0]
