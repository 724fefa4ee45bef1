"""Copies of a GGUF model with more metadata (ggml's docs/gguf.md)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

_HEAD = struct.Struct("<4sIQQ")  # magic, version, tensors, values of metadata
_ALIGNMENT = 32
_I32, _F32, _TEXT = 5, 6, 8


def with_metadata(model: Path, path: Path, values: Mapping[str, float | str]) -> Path:
    """Write ``model`` with ``values`` besides its own metadata to ``path``, and return it.

    What is put in has a multiple of the alignment as its length, so that all offsets behind it stay right.
    """
    more = b"".join(_text(key) + _value(value) for key, value in values.items())
    filler = _text("test.filler") + _value("")
    more += _text("test.filler") + _value(" " * (-(len(more) + len(filler)) % _ALIGNMENT))
    with model.open("rb") as old, path.open("wb") as new:
        magic, version, n_tensors, n_values = _HEAD.unpack(old.read(_HEAD.size))
        new.write(_HEAD.pack(magic, version, n_tensors, n_values + len(values) + 1) + more)
        while part := old.read(1 << 24):
            new.write(part)
    return path


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: float | str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    return struct.pack("<If", _F32, value) if isinstance(value, float) else struct.pack("<Ii", _I32, value)
