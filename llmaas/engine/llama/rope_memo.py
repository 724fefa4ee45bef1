"""Keeps the tables of angles that were found for models, so that a start need not measure them anew.

Law: a table from the file is used only if it rotates keys as they are found now (``rope.checked``); a file that cannot
be read or written is an empty one.

Measuring takes eleven decodes of one token, which are half of a start whose model is in the page cache: 0.7 s of a
model of 1.5 billion weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmaas.kv_arrays import F32
from llmaas.memo_file import read_entries, with_newest, write_entries

_MOST = 32
"""Models that are kept: the newest."""


class RopeMemo:
    """The tables in the file ``path``, each under a name of model and llama.cpp."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, name: str) -> F32 | None:
        """The angles (n_layer, n_pairs); None if there are none that make sense."""
        try:
            entry = read_entries(self._path)[name]
            tables, layers = np.array(entry["tables"], np.float32), [int(layer) for layer in entry["layers"]]
            found = tables[layers] if tables.ndim == 2 and min(layers) >= 0 else None
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            return None
        return found if found is not None and np.isfinite(found).all() else None

    def keep(self, name: str, angles: F32) -> None:
        tables, layers = np.unique(angles, axis=0, return_inverse=True)
        entry = {"tables": tables.tolist(), "layers": layers.reshape(-1).tolist()}
        kept = with_newest(read_entries(self._path), name, entry, _MOST)
        write_entries(self._path, kept, "how models rotate their keys")
