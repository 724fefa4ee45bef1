"""What an engine writes to a pipe of rows that it tells (llmaas/engine/row_pipe.py)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any


def record(number: int, first: int, rows: Sequence[Sequence[Any]]) -> bytes:
    """``rows`` of tokens, of ``number``, after ``first`` others."""
    head = struct.pack("=4i", number, first, len(rows), len(rows[0]))
    return head + b"".join(struct.pack(f"={len(row)}i", *row) for row in rows)
