"""A model with only its first layers: for an engine on a device that computes slowly. What it says makes no sense."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from tests.support.gguf_files import TEXT, U32, TensorHead, raw, read_pair, read_tensor_head

_ALIGNMENT = 32


def first_layers(model: Path, path: Path, n: int) -> Path:
    """Write the first ``n`` layers of ``model``, and what belongs to no layer, to ``path`` and return it."""
    with model.open("rb") as old, path.open("wb") as new:
        _, version, n_tensors, n_values = struct.unpack("<4sIQQ", old.read(24))
        meta = dict(read_pair(old) for _ in range(n_values))
        heads = [read_tensor_head(old) for _ in range(n_tensors)]
        begin = _aligned(old.tell())
        end = model.stat().st_size - begin
        stops = {one.offset: stop for one, stop in _with_stops(heads, end)}
        kept = [one for one in heads if (layer := re.match(r"blk\.(\d+)\.", one.name)) is None or int(layer[1]) < n]
        meta[f"{meta['general.architecture'][1]}.block_count"] = U32, n
        new.write(struct.pack("<4sIQQ", b"GGUF", version, len(kept), n_values))
        for name, (kind, value) in meta.items():
            new.write(raw(TEXT, name) + struct.pack("<I", kind) + raw(kind, value))
        offset = 0
        for one in kept:
            shape = struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *one.shape)
            new.write(raw(TEXT, one.name) + shape + struct.pack("<IQ", one.kind, offset))
            offset += _aligned(stops[one.offset] - one.offset)
        for one in kept:
            new.write(bytes(_aligned(new.tell()) - new.tell()))
            old.seek(begin + one.offset)
            new.write(old.read(stops[one.offset] - one.offset))
    return path


def _with_stops(heads: list[TensorHead], end: int) -> list[tuple[TensorHead, int]]:
    in_order = sorted(heads, key=lambda one: one.offset)
    return list(zip(in_order, [one.offset for one in in_order[1:]] + [end], strict=True))


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
