"""Checksums of rows: whether the values of a row are those that were written.

Law: pure. A checksum is XXH3-64, big endian, of the row's values in one unambiguous form:

    length of each value (int32; -1 for NULL) | the values: text and blobs as they are, int64, float64

All numbers are little-endian, text is UTF-8. The checksum protects against accidents (a failing disk, a stray write),
not against somebody who can write to the index: such a person can write the checksum, too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import xxhash

Value = bytes | str | int | float | None
"""What SQLite stores in a column."""

CHECKSUM_BYTES = 8
_LONGEST_MEND = 32 << 10
"""Bytes. In a longer row, one flipped bit is not searched for: the search takes time with the square of the length, and
half a second for this one."""


def row_checksum(values: Sequence[Value]) -> bytes:
    """The checksum of a row, 8 bytes."""
    return xxhash.xxh3_64_digest(b"".join(_packed(values)))


def without_flip(values: Sequence[Value], expected: object) -> tuple[Value, ...] | None:
    """The row whose checksum is ``expected`` if it differs from ``values`` in one bit; None if there is none.

    Every bit of text, blobs and reals is tried. With 64 bits of checksum, a wrong row is taken for the right one with a
    probability of less than 2^-46. Text is returned as bytes.
    """
    packed = bytearray(b"".join(_packed(values)))
    first = 4 * len(values)
    if not isinstance(expected, bytes) or len(expected) != CHECKSUM_BYTES or len(packed) > _LONGEST_MEND:
        return None
    for at in range(first, len(packed)):
        right = packed[at]
        for bit in range(8):
            packed[at] = right ^ 1 << bit
            if xxhash.xxh3_64_digest(packed) == expected:
                return tuple(_unpacked(packed, values))
        packed[at] = right
    return None


def _packed(values: Sequence[Value]) -> list[bytes]:
    parts = [None if value is None else _as_bytes(value) for value in values]
    lengths = struct.pack(f"<{len(parts)}i", *(-1 if part is None else len(part) for part in parts))
    return [lengths, *(part for part in parts if part is not None)]


def _as_bytes(value: bytes | str | float) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")  # text that is not UTF-8 is read by ``tolerant_text``
    return struct.pack("<q" if isinstance(value, int) else "<d", value)


def _unpacked(packed: bytes | bytearray, values: Sequence[Value]) -> Iterator[Value]:
    """The values in ``packed``, of the types that ``values`` has."""
    at = 4 * len(values)
    for value in values:
        if value is None:
            yield None
            continue
        size = len(_as_bytes(value))
        part, at = bytes(packed[at : at + size]), at + size
        if isinstance(value, int):
            yield struct.unpack("<q", part)[0]
        elif isinstance(value, float):
            yield struct.unpack("<d", part)[0]
        else:
            yield part


def tolerant_text(raw: bytes) -> str:
    """Text as SQLite stores it. Bytes that are no UTF-8 become lone surrogates (PEP 383) instead of an exception: they
    are in a damaged row, and the row's checksum says so."""
    return raw.decode("utf-8", "surrogateescape")
