"""Token ids as the index stores them: little-endian int32, one after the other, perhaps encrypted.

Law: pure.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

from llmaas.kvchunks.store.cipher import OVERHEAD


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


def count(stored: bytes, *, sealed: bool) -> int:
    """How many token ids are in what is stored, which is encrypted if ``sealed``."""
    return max(len(stored) - OVERHEAD if sealed else len(stored), 0) // 4


def n_common(a: array[int], b: array[int]) -> int:
    """How many leading tokens two contexts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
