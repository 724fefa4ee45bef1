"""Rows that steps in a row have drawn, told while the engine goes on to the next steps.

Law: rows are told in the order in which they were drawn, each once, and only whole. Writing never waits.

They go through a pipe, so that whoever computes tells them by one system call, without Python, and so that it wakes an
event loop. A record is four numbers (``ToldRows.number``, ``first``, how many rows, how many tokens a row), and then
the tokens; all are 32-bit integers of the machine. A pipe takes a record whole, or not at all.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_HEAD = struct.Struct("=4i")
_READ = 1 << 16
"""Bytes that a pipe holds."""


class ToldRows(NamedTuple):
    number: int
    """Of whom they are: see ``Telling.number``."""
    first: int
    """How many rows of this number were drawn before them."""
    rows: list[tuple[int, ...]]


@dataclass(slots=True)
class Telling:
    """What ``Engine.steps`` is to tell of its rows while it goes on, and what it has told."""

    pipe: int
    """Descriptor to write records to; see above. If it takes none, the steps end."""
    number: int
    before: int
    """How many rows of this number were told or sent before."""
    first_s: float
    """Seconds until rows are told."""
    every_s: float
    """Seconds between two times that rows are told."""
    ahead: Sequence[Sequence[int | None]] = ()
    """Rows that were drawn before these steps, with a token for each item: they are told first."""
    told: int = 0
    """How many rows were told, those ahead among them. Written by the engine."""
    since_s: float = 0.0
    """Seconds from the last time that rows were told to the end of the steps. Written by the engine."""


class RowPipe:
    """Both ends. Whoever has given ``writes_at`` away holds this object as long as it may be used."""

    def __init__(self) -> None:
        self.reads_at, self.writes_at = os.pipe()
        os.set_blocking(self.reads_at, False)
        os.set_blocking(self.writes_at, False)
        self._buffer = memoryview(bytearray(_READ))
        weakref.finalize(self, _close, self.reads_at, self.writes_at)

    def read(self) -> list[ToldRows]:
        """All that was told since the last call. Never waits."""
        found: list[ToldRows] = []
        try:
            n = os.readv(self.reads_at, [self._buffer])
        except BlockingIOError:
            return found
        at = 0
        while at < n:
            number, first, n_rows, n_items = _HEAD.unpack_from(self._buffer, at)
            begin = at + _HEAD.size
            at = begin + 4 * n_rows * n_items
            tokens = self._buffer[begin:at].cast("i").tolist()
            rows = [tuple(tokens[i : i + n_items]) for i in range(0, len(tokens), n_items)]
            found.append(ToldRows(number, first, rows))
        return found


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
