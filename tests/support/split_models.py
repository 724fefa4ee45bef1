"""A model file that is split into several, as llama.cpp's ``llama-gguf-split`` does."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from tests.support.gguf_files import I32, U16, Meta, read_meta, read_pair, read_tensor_head, write_model
from tests.support.random_models import Tensors


def split_model(path: Path, n: int, *, bare_first: bool = False) -> list[Path]:
    """Write the float32 model at ``path`` as ``n`` files beside it. ``bare_first``: the first has no tensors."""
    meta, tensors = read_meta(path), read_tensors(path)
    names, n_with = list(tensors), n - bare_first
    parts = []
    for number in range(n):
        turn = number - bare_first
        held = {} if turn < 0 else {name: tensors[name] for name in names[turn::n_with]}
        own: Meta = {
            **(meta if number == 0 else {}),
            "split.no": (U16, number),
            "split.count": (U16, n),
            "split.tensors.count": (I32, len(tensors)),
        }
        part = path.with_name(f"{path.stem}-{number + 1:05}-of-{n:05}.gguf")
        parts.append(write_model(part, own, held))
    return parts


def read_tensors(path: Path) -> Tensors:
    """All tensors of a file with nothing but float32 ones."""
    with path.open("rb") as file:
        _, _, n_tensors, n_values = struct.unpack("<4sIQQ", file.read(24))
        for _ in range(n_values):
            read_pair(file)
        heads = [read_tensor_head(file) for _ in range(n_tensors)]
        begin = -(-file.tell() // 32) * 32
        found: Tensors = {}
        for name, shape, kind, offset in heads:
            assert kind == 0, (name, kind)
            file.seek(begin + offset)
            count = int(np.prod(shape))
            found[name] = np.frombuffer(file.read(4 * count), np.float32).reshape(shape[::-1])
    return found
