"""A set of contexts that finds the one with the greatest rank.

Law: pure; each operation takes logarithmic work in the number of members. Possible because a rank is fixed until its
context is overdue, and all overdue ranks grow at the same pace (``rankings``).
"""

from __future__ import annotations

import heapq

from llmaas.policies.eviction.rankings import Ranking
from llmaas.records import ContextId


class ContextHeap:
    """Some contexts, in the order of ``ranking``.

    Three heaps with lazy deletion: members that are not overdue, by rank; the same, by when they become overdue; and
    overdue members, by last use. Each entry has a serial number, and only the newest entry of a member counts.
    """

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self._entry: dict[ContextId, int] = {}
        """Serial number of each member's newest entry. Older entries are skipped when they come to the top."""
        self._serial = 0
        self._settled: list[tuple[float, int, ContextId]] = []
        """(-rank, -serial, context)"""
        self._due: list[tuple[float, int, ContextId, int]] = []
        """(tick from which the member is overdue, serial, context, tick of its last use)"""
        self._overdue: list[tuple[float, int, ContextId]] = []
        """(tick of its last use, serial, context)"""

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, context: object) -> bool:
        return context in self._entry

    def add(self, context: ContextId) -> None:
        """Make the context a member. A member must be added again after the ranking has learned something about it."""
        self._serial += 1
        self._entry[context] = self._serial
        heapq.heappush(self._settled, (-self.ranking.settled(context), -self._serial, context))
        if (due := self.ranking.overdue(context)) is not None:
            heapq.heappush(self._due, (due[0], self._serial, context, due[1]))
        if len(self._settled) + len(self._due) + len(self._overdue) > 4 * len(self._entry) + 64:
            self._compact()

    def discard(self, context: ContextId) -> None:
        self._entry.pop(context, None)

    def pop(self, tick: int) -> ContextId | None:
        """Remove and return the member with the greatest rank; None if there are no members.

        Among equal ranks the one that was added last goes first: in strict turns it is the one that returns last.
        """
        while self._due and self._due[0][0] < tick:
            _, serial, context, last = heapq.heappop(self._due)
            if self._entry.get(context) == serial:
                self._serial += 1
                self._entry[context] = self._serial
                heapq.heappush(self._overdue, (last, self._serial, context))
        self._drop_stale(self._settled)
        self._drop_stale(self._overdue)
        if not self._settled and not self._overdue:
            return None
        late = self._overdue and (not self._settled or tick - self._overdue[0][0] >= -self._settled[0][0])
        context = heapq.heappop(self._overdue if late else self._settled)[2]
        del self._entry[context]
        return context

    def _drop_stale(self, heap: list[tuple[float, int, ContextId]]) -> None:
        """Remove entries that no longer count from the top of ``heap``."""
        while heap and self._entry.get(heap[0][2]) != abs(heap[0][1]):
            heapq.heappop(heap)

    def _compact(self) -> None:
        """Build all heaps anew without stale entries."""
        members = list(self._entry)
        self._settled, self._due, self._overdue = [], [], []
        for context in members:
            self.add(context)
