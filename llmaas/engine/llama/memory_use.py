"""How much memory llama.cpp takes beside the model's file and the cells, and how much on devices.

Law: pure. llama.cpp has no function that tells these sizes; it logs a line for each buffer that it makes. A buffer
has the name of the device that it is on; ``devices`` are those with memory of their own, and all else is RAM.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

_LINE = re.compile(r"(\S+) +(model|compute|output|RS) buffer size *= *([0-9.]+) MiB")
_MARK = " buffer size"
_REPACKED = "REPACK"
"""Is part of the name of a buffer for weights in another order (ggml, ``ggml_backend_cpu_repack_buffer_type``)."""
_MAPPED = "_Mapped"
"""Ends the name of a buffer that is the model's file, mapped."""
_COMPUTING = ("compute", "output", "RS")
_LAYER = re.compile(r"layer +([0-9]+) assigned to device (\S+),")
_CELLS = re.compile(r"^llama_kv_cache: size = *([0-9.]+) MiB")


def copied_bytes(lines: Iterable[str], devices: Collection[str] = ()) -> int:
    """Bytes of weights that are not used where the file is mapped, but copied into another order ("repacked")."""
    sizes = _sizes(lines)
    return sum(n for name, kind, n in sizes if kind == "model" and name not in devices and not name.endswith(_MAPPED))


def can_copy(lines: Iterable[str]) -> bool:
    """Whether any weights are to be copied so. ``lines`` may be those of loading without weights: all sizes are 0."""
    return any(kind == "model" and _REPACKED in name for name, kind, _ in _sizes(lines))


def working_bytes(lines: Iterable[str], devices: Collection[str] = ()) -> int:
    """Bytes that computing takes at most: the graph's intermediate results, logits, and the states of recurrent layers,
    of as many sequences as there may be."""
    return sum(n for name, kind, n in _sizes(lines) if kind in _COMPUTING and name not in devices)


def output_bytes(lines: Iterable[str]) -> int:
    """Bytes of the buffer that logits are in."""
    return sum(n for _, kind, n in _sizes(lines) if kind == "output")


def device_bytes(lines: Iterable[str], devices: Collection[str]) -> Counter[str]:
    """Bytes that lie on each of these devices: weights, intermediate results, but no cells."""
    found: Counter[str] = Counter()
    for name, _, n in _sizes(lines):
        if name in devices:
            found[name] += n
    return found


def cell_bytes(lines: Iterable[str], devices: Collection[str]) -> Counter[str]:
    """Bytes of cells on each of these devices. ``lines`` are those of loading a model and making a context.

    By the layers that each has: without weights llama.cpp logs the size of all cells, but not where they are.
    """
    lines = list(lines)
    places = {int(found[1]): found[2] for line in lines if (found := _LAYER.search(line))}
    places.pop(max(places, default=0), None)  # the output, which has no cells
    total = sum(_bytes(found[1]) for line in lines if (found := _CELLS.search(line)))
    layers = Counter(name for name in places.values() if name in devices)
    return Counter({name: round(total * n / len(places)) for name, n in layers.items()})


def _sizes(lines: Iterable[str]) -> Iterable[tuple[str, str, int]]:
    for line in lines:
        if _MARK in line and (found := _LINE.search(line)):
            name, kind, mib = found.groups()
            yield name, kind, _bytes(mib)


def _bytes(mib: str) -> int:
    return round(float(mib) * (1 << 20))
