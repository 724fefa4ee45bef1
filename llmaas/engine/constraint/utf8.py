"""Which characters a beginning of UTF-8 can become (RFC 3629: the shortest form, and no surrogates).

Law: pure functions.
"""

from __future__ import annotations

_LENGTH = {**dict.fromkeys(range(0xC2, 0xE0), 2), **dict.fromkeys(range(0xE0, 0xF0), 3)}
_LENGTH |= dict.fromkeys(range(0xF0, 0xF5), 4)
_LEAST = {2: 0x80, 3: 0x800, 4: 0x10000}
_SURROGATES = 0xD800, 0xDFFF


def is_start(byte: int) -> bool:
    """Whether the byte begins a character of more than one byte."""
    return byte in _LENGTH


def span(begun: bytes) -> tuple[int, int, bool]:
    """The least and the greatest character that begins with these bytes, and whether they are all of it.

    The first is greater than the second if there is none. ``begun``: a byte for which ``is_start`` holds and what
    follows it.
    """
    length = _LENGTH[begun[0]]
    value = begun[0] & (0x7F >> length)
    for byte in begun[1:]:
        if byte & 0xC0 != 0x80:
            return 1, 0, False
        value = value << 6 | byte & 0x3F
    shift = 6 * (length - len(begun))
    low, high = value << shift, (value + 1 << shift) - 1
    low, high = max(low, _LEAST[length]), min(high, 0x10FFFF)
    if low >= _SURROGATES[0] and low <= _SURROGATES[1]:
        low = _SURROGATES[1] + 1
    if high >= _SURROGATES[0] and high <= _SURROGATES[1]:
        high = _SURROGATES[0] - 1
    return low, high, shift == 0
