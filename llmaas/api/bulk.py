"""Frames and records that hold much data, packed and unpacked without a copy of it.

Law: pure. What is packed is what msgpack packs, only in parts; what is unpacked is what msgpack unpacks, only that long
bytes are views of the body that they came in.

msgpack copies each byte string into the body and out of it again, and the body into what is sent: of a chunk that goes
from disk to a socket that is most of what it costs.

>>> big = bytes(BULK)
>>> parts = packed_parts({"id": 1, "data": big})
>>> b"".join(parts) == msgpack.packb({"id": 1, "data": big}), parts[1] is big
(True, True)
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack  # type: ignore[import-untyped,unused-ignore]

BULK = 1 << 16
"""Bytes of a byte string that is not copied."""
Bulk = bytes | memoryview
"""A byte string that may be a view: of a record's field that holds much."""
Parts = tuple[Bulk, ...]
"""Bytes that follow one another."""
Span = tuple[int, int, int]
"""Of a long byte string in a body: where its head begins, where its bytes do, and where they end."""

_MOST_LOOKED = 4096
"""Values of a body that is looked through for long byte strings, and not for how many values it holds."""
_BIN_32 = 0xC6
_BIN_HEAD = struct.Struct(">BI")
_STAND_IN = struct.Struct(">BBI")
_FIXEXT_4, _KIND = 0xD6, 0
_EXTENSIONS = frozenset((0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9)))


def packed_parts(value: object) -> Parts:
    """What ``msgpack.packb`` gives, in parts: long byte strings are parts themselves."""
    packer, parts = msgpack.Packer(autoreset=False), list[Bulk]()
    _pack(value, packer, parts)
    if rest := packer.bytes():
        parts.append(rest)
    return tuple(parts)


def _pack(value: Any, packer: Any, parts: list[Bulk]) -> None:
    kind = type(value)
    if kind is dict:
        packer.pack_map_header(len(value))
        for key, item in value.items():
            packer.pack(key)
            _pack(item, packer, parts)
    elif kind is list or kind is tuple:
        packer.pack_array_header(len(value))
        for item in value:
            _pack(item, packer, parts)
    elif (kind is bytes or kind is memoryview) and len(value) >= BULK:
        parts.append(packer.bytes() + _BIN_HEAD.pack(_BIN_32, len(value)))
        packer.reset()
        parts.append(value)
    else:
        packer.pack(value)


def unpacked(body: bytes | bytearray | memoryview, long: list[Span], **options: Any) -> Any:
    """What ``msgpack.unpackb`` gives with these options; the byte strings at ``long`` are views. Raises what it does.

    ``long`` is what ``look_through`` has found: then nothing of the body is an extension, and extensions can stand in
    for what is left out of it.
    """
    if not long:
        return msgpack.unpackb(body, max_ext_len=0, **options)
    whole, parts, views, at = memoryview(body).toreadonly(), list[Bulk](), list[memoryview](), 0
    for head, start, end in long:
        parts += (whole[at:head], _STAND_IN.pack(_FIXEXT_4, _KIND, len(views)))
        views.append(whole[start:end])
        at = end
    parts.append(whole[at:])
    options["ext_hook"] = lambda _, number: views[int.from_bytes(number, "big")]
    return msgpack.unpackb(b"".join(parts), max_ext_len=_STAND_IN.size, **options)


def look_through(data: bytes | bytearray | memoryview, most: int | None, long: list[Span] | None = None) -> bool:
    """False if lists and maps announce more than ``most`` values. ``long``: where to put the places of long byte
    strings; none if something is wrong with the body, which is left to msgpack. Nesting does not matter: what is in a
    list or map just follows its head."""
    position, seen, announced, plain = 0, 0, 1, True
    while seen < announced and position < len(data):
        begin, head = position, data[position]
        seen, position = seen + 1, position + 1
        if head < 0x80 or head >= 0xE0:  # a small number
            continue
        if head < 0xA0:  # a short map or list
            announced += (head & 0x0F) * (2 if head < 0x90 else 1)
        elif head < 0xC0:  # a short string
            position += head & 0x1F
        elif (width := _WIDTHS.get(head)) is None:
            position += _SIZES.get(head, 0)
            plain = plain and head not in _EXTENSIONS
        else:
            number = int.from_bytes(data[position : position + width], "big")
            position += width
            if head < 0xDC:  # a string, bytes, or an extension
                plain = plain and head not in _EXTENSIONS
                if head == _BIN_32 and number >= BULK and long is not None:
                    long.append((begin, position, position + number))
                position += number
            else:
                announced += number * (2 if head >= 0xDE else 1)
        if most is None:
            plain = plain and seen < _MOST_LOOKED
            if not plain:
                break
        elif announced > most:
            return False
    if long is not None and not (plain and position <= len(data)):
        long.clear()
    return True


_WIDTHS = {head: 1 << i for first in (0xC4, 0xC7, 0xD9) for i, head in enumerate(range(first, first + 3))}
_WIDTHS |= {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
"""Bytes of the length that follows these heads: of bytes, extensions and strings; of lists and maps."""
_SIZES = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
"""Bytes of the numbers that follow these heads."""
