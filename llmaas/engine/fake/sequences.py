"""Sequences of the fake engine: which cells each one has, and its running sum.

Law: a cell belongs to one or more sequences; it is free again when the last one drops it. A sum depends on the
digests of all positions before it, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmaas.engine.base import CellsFull
from llmaas.engine.rules import check_copy, check_drop, check_export
from llmaas.mixing import mix


@dataclass(slots=True, eq=False)
class _Cell:
    """A token's KV: its digest, and how many sequences share it."""

    digest: int
    shared_by: int = 1


class FakeSequences:
    """``n_seqs`` sequences that share ``n_cells`` cells."""

    def __init__(self, n_cells: int, n_seqs: int) -> None:
        self.n_cells = n_cells
        self._cells: list[list[_Cell]] = [[] for _ in range(n_seqs)]
        self._sums: list[list[int]] = [[0] for _ in range(n_seqs)]
        """The sum after 0, 1, 2 ... positions."""
        self._used = 0

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def lengths(self) -> Sequence[int]:
        return [len(cells) for cells in self._cells]

    def length(self, seq: int) -> int:
        return len(self._cells[seq])

    def sum(self, seq: int) -> int:
        return self._sums[seq][-1]

    def claim(self, n: int) -> None:
        """Take ``n`` free cells, which ``append`` then fills. Raises CellsFull."""
        if self._used + n > self.n_cells:
            raise CellsFull(f"no {n} free cells: {self._used} of {self.n_cells} are in use")
        self._used += n

    def unclaim(self, n: int) -> None:
        """Give back cells that were claimed and not filled."""
        self._used -= n

    def append(self, seq: int, digest: int) -> None:
        sums = self._sums[seq]
        self._cells[seq].append(_Cell(digest))
        sums.append(mix(sums[-1], digest))

    def digests(self, seq: int, start: int, stop: int) -> list[int]:
        check_export(self.lengths, seq, start, stop)
        return [cell.digest for cell in self._cells[seq][start:stop]]

    def drop(self, seq: int, start: int) -> None:
        check_drop(start)
        for cell in self._cells[seq][start:]:
            cell.shared_by -= 1
            self._used -= cell.shared_by == 0
        del self._cells[seq][start:], self._sums[seq][start + 1 :]

    def copy(self, src: int, dst: int, stop: int) -> None:
        check_copy(self.lengths, src, dst, stop)
        self._cells[dst] = self._cells[src][:stop]
        self._sums[dst] = self._sums[src][: stop + 1]
        for cell in self._cells[dst]:
            cell.shared_by += 1
