"""What an agent has told of the marks of its node, so that it tells no more than what is new.

Law: pure. Each other set of marks has a number; who knows the one before is told the difference, who knows the newest
nothing, and everybody else all of it.
"""

from __future__ import annotations

from llmaas.api.mark_messages import MOST_MARKS
from llmaas.frozen import frozen
from llmaas.policies.context_marks import MARK_BYTES, packed, unpacked


@frozen
class MarkChange:
    """What became of a node's marks. ``since``: the number of those that it is told on; None: of none. Marks are
    packed, since they go from process to process: 8 bytes each."""

    serial: int
    since: int | None
    added: bytes
    removed: bytes = b""

    def __post_init__(self) -> None:
        for name, marks in (("added", self.added), ("removed", self.removed)):
            if len(marks) > MOST_MARKS * MARK_BYTES:
                raise ValueError(f"field '{name}': a node tells of {MOST_MARKS} marks, not of {len(marks)} bytes")

    @property
    def new(self) -> tuple[int, ...]:
        """Raises ValueError."""
        return unpacked(self.added)

    @property
    def gone(self) -> tuple[int, ...]:
        """Raises ValueError."""
        return unpacked(self.removed)


class MarkBook:
    """
    >>> book = MarkBook()
    >>> book.take(frozenset({1, 2})), book.take(frozenset({2, 3}))
    (None, None)
    >>> change = book.since(1)
    >>> change.serial, change.new, change.gone
    (2, (3,), (1,))
    >>> book.since(7).new, book.since(2) is None
    ((2, 3), True)
    """

    def __init__(self) -> None:
        self._serial, self._marks = 0, frozenset[int]()
        self._last = MarkChange(0, None, b"")

    def take(self, marks: frozenset[int]) -> None:
        """The node has these now."""
        if marks != self._marks:
            before, self._marks = self._marks, marks
            added, removed = packed(sorted(marks - before)), packed(sorted(before - marks))
            self._last = MarkChange(self._serial + 1, self._serial, added, removed)
            self._serial += 1

    def since(self, serial: int) -> MarkChange | None:
        """What to tell somebody who knows the marks of that number; -1: who knows none."""
        if serial == self._serial:
            return None
        if serial == self._last.since:
            return self._last
        return MarkChange(self._serial, None, packed(sorted(self._marks)))
