"""How a context comes back: how many chunks at its front are recomputed while the rest is read from DISK.

Law: pure. A hole is a run of chunks that are on DISK only. Computing proceeds from its front and reading from its back
(as in Cake, arXiv 2410.03065). The question is asked again whenever either has advanced, so a side that turns out
slower than expected simply gets less of what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from llmaas.frozen import frozen


@frozen
class Hole:
    """Expected seconds for the chunks of a hole. Each sequence has an entry for n = 0 .. number of chunks.

    ``compute[n]``: recomputing the first n chunks. ``read[n]``: reading the last n chunks, including what is being read
    already (so ``read[0]`` may be above 0). ``place[n]``: decoding the last n chunks and putting them into cells.
    """

    compute: Sequence[float]
    read: Sequence[float]
    place: Sequence[float]

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self.compute) - 1

    def seconds(self, n_computed: int) -> float:
        """Seconds until all chunks are in cells, if the first ``n_computed`` are recomputed."""
        n_read = len(self) - n_computed
        if n_computed == 0:  # placing need not wait for computing: it overlaps with reading
            return max(self.read[n_read], self.place[n_read])
        return max(self.compute[n_computed], self.read[n_read]) + self.place[n_read]


class SplitPolicy(Protocol):
    def split(self, hole: Hole) -> int:
        """How many chunks at the front to recompute; the others are read."""


class LoadFirst:
    """Read everything that has a copy. Right wherever the disk is fast, which is nearly everywhere without a GPU."""

    def split(self, hole: Hole) -> int:
        return 0


class RecomputeFirst:
    """Never read; a bound for benches."""

    def split(self, hole: Hole) -> int:
        return len(hole)


class Balanced:
    """The split that ends first: both sides end together, or one side does all if the other would only delay it.

    >>> even = Hole(compute=[0, 1, 2, 3, 4], read=[0, 1, 2, 3, 4], place=[0, 0, 0, 0, 0])
    >>> Balanced().split(even)
    2
    >>> slow_disk = Hole(compute=[0, 1, 2, 3, 4], read=[0, 9, 18, 27, 36], place=[0, 0, 0, 0, 0])
    >>> Balanced().split(slow_disk)
    4
    """

    def split(self, hole: Hole) -> int:
        return min(range(len(hole) + 1), key=hole.seconds)


SPLIT: dict[str, Callable[[], SplitPolicy]] = {
    "balanced": Balanced,
    "load_first": LoadFirst,
    "recompute_first": RecomputeFirst,
}
"""Every policy by the name that settings give it."""
