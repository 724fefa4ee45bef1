"""Token ids as the index stores them: little-endian int32, one after the other.

Law: pure.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable


def pack(tokens: Iterable[int]) -> bytes:
    """Token ids as little-endian int32. Raises OverflowError for a number that does not fit."""
    ids = array("i", tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def unpack(blob: bytes) -> array[int]:
    """The token ids that ``pack`` wrote, typecode 'i'."""
    ids = array("i")
    ids.frombytes(blob)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
