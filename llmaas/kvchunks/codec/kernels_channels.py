"""The format of coded keys (K), and the numpy kernels that define it.

Law: as in ``kernels_numpy``. This is the oracle of the C kernels, operation by operation, and the fallback without
them.

x is a plane (layers, tokens, dim) of f16. Keys are coded in three steps:

1. They are un-rotated. RoPE rotates the two channels of a pair by an angle that grows with the position, so channels
   vary along a chunk even where the key does not. Each token is rotated back by its place in the group of 64, which
   needs no position.
2. 64 tokens of a channel are a group: they share a minimum and a step.
3. Each channel gets 0 to 8 bits, by its range times its weight (how large queries are there). Of all ways to spend the
   bits of a layer, this one errs least in q.k (reverse water-filling, Cover & Thomas, section 10.3.3). The mean over a
   layer is exactly the nominal number of bits.

A section holds layer after layer, each:

    | word u16[groups][dim] | low f16[groups][dim] | codes u8[units][bits * dim] |
      word = step (f16, rounded up to 6 bits of mantissa) | bits of the channel          x = code * step + low

A unit is 8 tokens. Codes are cut into fields of 8, 4, 2 and 1 bits. A unit holds 8 rows of one byte for each channel of
8 bits; then 4 rows for channels with a field of 4 (those of 4, 5, 6 or 7 bits); 2 rows for a field of 2 (2, 3, 6 or 7
bits); 1 row for a field of 1 (1, 3, 5 or 7 bits). Inside a row, channels keep their order. Fields lie in bytes as those
of V do, but high bits first: of 5 = 4 + 1 bits, the upper 4 are in the field of 4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmaas.frozen import frozen
from llmaas.kvchunks.codec.kernels_numpy import BITS, F16, F32, GROUP, U8, UNIT, inverse, to_half

U16 = npt.NDArray[np.uint16]
I32 = npt.NDArray[np.int32]

MOST_BITS = 8
"""Most bits that a channel gets."""
LARGEST_HEAD = 256
"""Most channels of a head whose keys can be un-rotated."""
_BITS_MASK = 0xF
"""The part of a word that holds the bits of its channel; the rest is the step."""
_SHIFT = np.array([0, 0, 1, 0, 3, 2, 1, 0, 0], np.uint8)
"""How far the codes of a channel are shifted up, by its bits. Then each field is at the same bit in all channels: the
field of 4 at bit 3, that of 2 at bit 1, that of 1 at bit 0 (but at bit 2 of 5-bit codes)."""
_UNSHIFT: F32 = (1 / (1 << _SHIFT)).astype(np.float32)
"""Factor of the step that undoes ``_SHIFT``."""


@frozen(eq=False)
class RopeRotation:
    """How RoPE rotates keys within a group of 64 tokens.

    ``table`` (kinds, 64, 2, head) float32 holds cosines and signed sines for each place in a group. ``kind`` (layers)
    uint8 says which of the tables a layer has. A channel is paired with its neighbour, or with ``halves`` with the
    channel that is ``pairs`` away.
    """

    table: F32
    kind: U8
    pairs: int
    halves: bool

    @property
    def head(self) -> int:
        return int(self.table.shape[3])


class BadWords(ValueError):
    """The channels of a section do not have its number of bits together, so no encoder wrote it."""

    def __init__(self) -> None:
        super().__init__("the bits of a chunk's channels do not add up to its precision")


def channels_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a K section of ``shape`` (layers, tokens, dim)."""
    layers, tokens, dim = shape
    return layers * dim * (4 * -(-tokens // GROUP) + bits * -(-tokens // UNIT))


def encode_channels(x: F16, bits: int, rope: RopeRotation | None, weights: F32, out: U8) -> None:
    """Code ``x`` with ``bits`` per value in the mean into ``out``, which has ``channels_bytes(x.shape, bits)`` bytes.

    ``weights`` (layers, dim): how much an error in a channel matters, relative to the others of its layer.
    """
    words, lows, units = _views(out, x.shape, bits)
    for group, start in enumerate(range(0, x.shape[1], GROUP)):
        part = x[:, start : start + GROUP].astype(np.float32)
        if rope is not None:
            part = _rotate_rope(part, rope, np.float32(-1))
        low, high = part.min(axis=1), part.max(axis=1)
        spread = (high - low) + np.float32(0)  # the minimum of 0 and -0 may be either; + 0 makes -0 to 0
        widths = water_fill(((spread * weights).view(np.int32) >> 15), bits)
        top = ((1 << widths) - 1).astype(np.float32)
        word = to_half(spread * inverse(top)).view(np.uint16)
        step = np.where(widths > 0, (word + np.uint16(_BITS_MASK)) & np.uint16(0xFFFF - _BITS_MASK), 0).astype(
            np.uint16
        )
        words[:, group] = step | widths.astype(np.uint16)
        lows[:, group] = to_half(np.where(widths > 0, low, (low + high) * np.float32(0.5)) + np.float32(0))
        q = (part - lows[:, group].astype(np.float32)[:, None]) * inverse(_steps(step))[:, None]
        q = np.minimum(np.maximum(q, np.float32(0)), top[:, None])
        codes = np.zeros((x.shape[0], -(-part.shape[1] // UNIT) * UNIT, x.shape[2]), np.uint8)
        codes[:, : part.shape[1]] = q + np.float32(0.5)
        first = start // UNIT
        _pack(codes << _SHIFT[widths][:, None], widths, units[:, first : first + codes.shape[1] // UNIT])


def decode_channels(data: U8, bits: int, rope: RopeRotation | None, x: F16) -> None:
    """Decode the section ``data`` into ``x``. Raises BadWords, with ``x`` untouched, if no encoder wrote it."""
    words, lows, units = _views(data, x.shape, bits)
    widths = (words & _BITS_MASK).astype(np.int32)
    if (widths > MOST_BITS).any() or (widths.sum(axis=2) != bits * x.shape[2]).any():
        raise BadWords()
    for group, start in enumerate(range(0, x.shape[1], GROUP)):
        into, width = x[:, start : start + GROUP], widths[:, group]
        last = start // UNIT - (-into.shape[1] // UNIT)
        codes = _unpack(units[:, start // UNIT : last], width)[:, : into.shape[1]]
        step = _steps(words[:, group] & np.uint16(0xFFFF - _BITS_MASK)) * _UNSHIFT[width]
        y = codes.astype(np.float32) * step[:, None] + lows[:, group].astype(np.float32)[:, None]
        into[...] = to_half(y if rope is None else _rotate_rope(y, rope, np.float32(1)))


def water_fill(score: I32, bits: int) -> I32:
    """Allocate bits to channels: (layers, dim) values of 0 .. 8, whose sum is ``bits * dim`` in each layer.

    ``score`` (layers, dim) is log2 of the importance of a channel, in units of 1/256. A channel gets
    round(score - threshold) bits, at the lowest threshold at which the bits suffice for all. Bits that are left go to
    the first channels that would get one more at the next lower threshold.

    >>> water_fill(np.array([[0, 0, 512, 512]], np.int32), bits=2).tolist()  # two channels have 4 times the range
    [[1, 1, 3, 3]]
    """
    dim = score.shape[1]
    low = np.full(len(score), -(1 << 16), np.int32)  # here every channel has 8 bits, which is too many or just right
    high = np.full(len(score), 1 << 17, np.int32)  # here none has any
    while (high - low > 1).any():
        middle = (low + high) >> 1
        fits = _rounded(score, middle).sum(axis=1) <= bits * dim
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    widths, favoured = _rounded(score, high), _rounded(score, high - 1)
    left = (bits * dim - widths.sum(axis=1))[:, None]
    more = favoured > widths
    filled: I32 = widths + (more & (np.cumsum(more, axis=1) <= left))
    return filled


def _rounded(score: I32, threshold: I32) -> I32:
    bits: I32 = np.clip((score - threshold[:, None] + 128) >> 8, 0, MOST_BITS)
    return bits


def _steps(words: U16) -> F32:
    return words.view(np.float16).astype(np.float32)


def _rotate_rope(x: F32, rope: RopeRotation, sign: np.float32) -> F32:
    """Rotate rows (layers, tokens, dim) by their place in the group: forward, or back with ``sign`` -1."""
    heads = x.reshape(*x.shape[:2], -1, rope.head)
    table = rope.table[rope.kind][:, : x.shape[1], :, None]
    partner = np.arange(rope.head) ^ 1
    if rope.halves:
        partner = np.arange(rope.head)
        partner[: 2 * rope.pairs] = (partner[: 2 * rope.pairs] + rope.pairs) % (2 * rope.pairs)
    return (heads * table[:, :, 0] + heads[..., partner] * (table[:, :, 1] * sign)).reshape(x.shape)


# -- layout -----------------------------------------------------------------------------------


def _views(section: U8, shape: tuple[int, ...], bits: int) -> tuple[U16, F16, U8]:
    layers, tokens, dim = shape
    groups = -(-tokens // GROUP)
    rows = section.reshape(layers, -1)
    scales = rows[:, : 4 * groups * dim].view(np.uint16).reshape(layers, 2, groups, dim)
    return scales[:, 0], scales[:, 1].view(np.float16), rows[:, 4 * groups * dim :].reshape(layers, -1, bits * dim)


def _fields(widths: I32) -> list[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.uint8]]]:
    """The fields of one layer: (width, bytes of a unit, channels that have the field, its first bit in their codes)."""
    found, at = [], 0
    for width, place in ((8, 0), (4, 3), (2, 1), (1, 0)):
        channels = np.flatnonzero(widths == 8 if width == 8 else (widths & width > 0) & (widths < 8))
        places = np.full(len(channels), place, np.uint8)
        if width == 1:
            places[widths[channels] == 5] = 2
        rows = at + np.arange(width * len(channels)).reshape(width, -1)
        found.append((width, rows, channels, places))
        at += rows.size
    return found


def _pack(codes: U8, widths: I32, units: U8) -> None:
    for layer, into in enumerate(units):
        by_unit = codes[layer].reshape(len(into), UNIT, -1)
        for width, rows, channels, places in _fields(widths[layer]):
            field = (by_unit[:, :, channels] >> places & (1 << width) - 1).reshape(len(into), UNIT // width, width, -1)
            shifts = np.arange(0, UNIT, width, dtype=np.uint8)[:, None, None]
            into[:, rows] = np.bitwise_or.reduce(field << shifts, axis=1)


def _unpack(units: U8, widths: I32) -> U8:
    codes = np.zeros((units.shape[0], units.shape[1], UNIT, widths.shape[1]), np.uint8)
    for layer, packed in enumerate(units):
        for width, rows, channels, places in _fields(widths[layer]):
            shifts = np.arange(0, UNIT, width, dtype=np.uint8)[:, None, None]
            field = (packed[:, None, rows] >> shifts & (1 << width) - 1).reshape(len(packed), UNIT, -1)
            codes[layer][:, :, channels] |= field << places
    return codes.reshape(units.shape[0], -1, widths.shape[1])


__all__ = ["BITS", "BadWords", "RopeRotation", "channels_bytes", "decode_channels", "encode_channels", "water_fill"]
