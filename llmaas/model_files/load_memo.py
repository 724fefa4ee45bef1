"""What was learned of loading: how many threads read a disk best and how fast, and how long the rest of a load takes.

Law: a file that cannot be read or written is an empty one; what is not known is None, never a guess. Figures are
running means, so that one load on a busy machine does not stay.

A load of n bytes that are not in memory takes about n/b seconds, b being what the disk delivers to all threads
together, and a fixed part for the vocabulary, the context and what is tried out at the start.
"""

from __future__ import annotations

import math
from pathlib import Path

from llmaas.frozen import frozen
from llmaas.memo_file import read_entries, with_newest, write_entries

_WEIGHT = 0.3
"""Of the newest figure in a running mean."""
_MOST = 64
"""Disks, and models, that are kept: the newest."""
MOST_THREADS, LEAST_CHUNK, MOST_CHUNK = 16, 1 << 18, 64 << 20


@frozen
class ReadPlan:
    """So many threads read so many bytes at a time."""

    threads: int
    chunk: int


@frozen
class DiskFigures:
    plan: ReadPlan
    rate: float
    """Bytes a second."""


class LoadMemo:
    """The figures in the file ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def disk(self, device: int) -> DiskFigures | None:
        """What is known of the disk with this number (``st_dev``)."""
        try:
            row = read_entries(self._path)["disks"][str(device)]
            plan, rate = ReadPlan(int(row["threads"]), int(row["chunk"])), float(row["rate"])
        except (KeyError, TypeError, ValueError):
            return None
        sound = 1 <= plan.threads <= MOST_THREADS and LEAST_CHUNK <= plan.chunk <= MOST_CHUNK
        return DiskFigures(plan, rate) if sound and 0 < rate < math.inf else None

    def keep_disk(self, device: int, found: DiskFigures) -> None:
        before = self.disk(device)
        rate = found.rate if before is None else _mean(before.rate, found.rate)
        row = {"threads": found.plan.threads, "chunk": found.plan.chunk, "rate": rate}
        self._keep("disks", str(device), row)

    def fixed_s(self, model: str) -> float | None:
        """Seconds that a load of the model takes beside the reads. ``model``: the path of its file."""
        try:
            found = float(read_entries(self._path)["models"][model])
        except (KeyError, TypeError, ValueError):
            return None
        return found if 0 < found < math.inf else None

    def keep_fixed(self, model: str, seconds: float) -> None:
        before = self.fixed_s(model)
        self._keep("models", model, seconds if before is None else _mean(before, seconds))

    def expected_s(self, model: str, device: int, missing: int) -> float | None:
        """Seconds that a load will take, of whose bytes ``missing`` are not in memory; None if nothing is known."""
        fixed, disk = self.fixed_s(model), self.disk(device)
        if fixed is None or (disk is None and missing):
            return None
        return fixed + (missing / disk.rate if disk is not None else 0.0)

    def _keep(self, table: str, key: str, value: object) -> None:
        rows = read_entries(self._path)
        entries = rows.get(table)
        rows[table] = with_newest(entries if isinstance(entries, dict) else {}, key, value, _MOST)
        write_entries(self._path, rows, "what was learned of loading")


def _mean(before: float, new: float) -> float:
    return (1 - _WEIGHT) * before + _WEIGHT * new
