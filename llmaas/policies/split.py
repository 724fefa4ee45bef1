"""How a context comes back: how many chunks at its front are recomputed while the rest is read from DISK.

Law: pure. A hole is a run of chunks that are on DISK only; computing goes on from its front, reading from its back (as
in Cake, arXiv 2410.03065), and the question is asked again whenever either has got further. So a side that turns out
slower than expected simply gets less of what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Hole:
    """Seconds that the first or last n chunks of a hole take, at index n = 0 .. number of chunks.

    ``compute`` is of the first n, ``read`` of the last n (what is being read already included, also at 0), ``place`` of
    decoding the last n and putting them into cells.
    """

    compute: Sequence[float]
    read: Sequence[float]
    place: Sequence[float]

    def __len__(self) -> int:
        return len(self.compute) - 1

    def seconds(self, n_computed: int) -> float:
        """Until all are in cells, if the first ``n_computed`` are recomputed."""
        n_read = len(self) - n_computed
        if n_computed == 0:  # nothing to wait for: what has been read is placed while the next is read
            return max(self.read[n_read], self.place[n_read])
        return max(self.compute[n_computed], self.read[n_read]) + self.place[n_read]


class SplitPolicy(Protocol):
    def split(self, hole: Hole) -> int:
        """How many chunks at the front to recompute; the others are read."""


class LoadFirst:
    """Read whatever has a copy: right wherever the disk is fast, which is nearly everywhere without a GPU."""

    def split(self, hole: Hole) -> int:
        return 0


class RecomputeFirst:
    """Never read; a bound for benches."""

    def split(self, hole: Hole) -> int:
        return len(hole)


class Balanced:
    """Where both sides end together, or all of one side where the other would only be in the way."""

    def split(self, hole: Hole) -> int:
        return min(range(len(hole) + 1), key=hole.seconds)


SPLIT: dict[str, Callable[[], SplitPolicy]] = {
    "balanced": Balanced,
    "load_first": LoadFirst,
    "recompute_first": RecomputeFirst,
}
