"""How much memory llama.cpp takes beside the model's file and the cells.

Law: pure. llama.cpp has no function that tells these sizes; it logs a line for each buffer that it makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LINE = re.compile(r"(\S+) +(model|compute|output|RS) buffer size *= *([0-9.]+) MiB")
_REPACKED = "REPACK"
"""Is part of the name of a buffer for weights in another order (ggml, ``ggml_backend_cpu_repack_buffer_type``)."""
_MAPPED = "_Mapped"
"""Ends the name of a buffer that is the model's file, mapped."""


def copied_bytes(lines: Iterable[str]) -> int:
    """Bytes of weights that are not used where the file is mapped, but copied into another order ("repacked")."""
    return sum(n for name, kind, n in _sizes(lines) if kind == "model" and not name.endswith(_MAPPED))


def can_copy(lines: Iterable[str]) -> bool:
    """Whether any weights are to be copied so. ``lines`` may be those of loading without weights: all sizes are 0."""
    return any(kind == "model" and _REPACKED in name for name, kind, _ in _sizes(lines))


def working_bytes(lines: Iterable[str]) -> int:
    """Bytes that computing takes at most: the graph's intermediate results, logits, and the states of recurrent layers,
    of as many sequences as there may be."""
    return sum(n for _, kind, n in _sizes(lines) if kind != "model")


def output_bytes(lines: Iterable[str]) -> int:
    """Bytes of the buffer that logits are in."""
    return sum(n for _, kind, n in _sizes(lines) if kind == "output")


def _sizes(lines: Iterable[str]) -> Iterable[tuple[str, str, int]]:
    for line in lines:
        if found := _LINE.search(line):
            name, kind, mib = found.groups()
            yield name, kind, round(float(mib) * (1 << 20))
