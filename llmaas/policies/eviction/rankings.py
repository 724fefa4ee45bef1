"""A set of contexts that knows which of them is expected back last.

Law: a member's rank is fixed until a known moment and from then on grows with time, at the same pace for all; so heaps
hold the order and work per call is logarithmic in the members. Time is counted in returns, of whichever context.
"""

from __future__ import annotations

import heapq
import math
from typing import Protocol

from llmaas.records import ContextId


class Ranking(Protocol):
    """What is known of contexts' returns. The greater its rank, the less a context deserves room."""

    def first_seen(self, context: ContextId, tick: int) -> None:
        """The context has chunks now; nothing changes if it is known."""

    def returned(self, context: ContextId, tick: int) -> None: ...

    def closed(self, context: ContextId) -> None: ...

    def settled(self, context: ContextId) -> float:
        """The rank that holds until the context is overdue."""

    def overdue(self, context: ContextId) -> tuple[float, int] | None:
        """From when on, and when the context was used last: its rank is then the time since. None: never."""


class LrfuRanking:
    """How often a context returned lately: each return counts half after ``half_life`` further ones.

    This is LRFU (Lee et al., IEEE Transactions on Computers 50:12, 2001). All counts fall at the same pace, so their
    order stays as it is between returns: kept are their logarithms as of tick 0.
    """

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._score: dict[ContextId, float] = {}

    def first_seen(self, context: ContextId, tick: int) -> None:
        self._score.setdefault(context, tick / self._half_life)

    def returned(self, context: ContextId, tick: int) -> None:
        now = tick / self._half_life
        before = self._score.get(context, -math.inf)
        self._score[context] = now + math.log2(1 + 2 ** (before - now))

    def closed(self, context: ContextId) -> None:
        self._score.pop(context, None)

    def settled(self, context: ContextId) -> float:
        return -self._score[context]

    def overdue(self, context: ContextId) -> None:
        return None


class IntervalRanking:
    """How long a context stays away: a moving mean of its intervals, or the present one if that is longer already.

    A context that has not returned yet is overdue from the start. Where all take turns, all intervals are equal: then
    nobody gives way to anybody, and a part of them stays, which is the best that can be.
    """

    _NEWEST = 0.5
    """Weight of the newest interval in the mean."""

    def __init__(self) -> None:
        self._last: dict[ContextId, int] = {}
        self._mean: dict[ContextId, float] = {}

    def first_seen(self, context: ContextId, tick: int) -> None:
        self._last.setdefault(context, tick)

    def returned(self, context: ContextId, tick: int) -> None:
        if context in self._last:
            away = float(tick - self._last[context])
            mean = self._mean.get(context, away)
            self._mean[context] = mean + self._NEWEST * (away - mean)
        self._last[context] = tick

    def closed(self, context: ContextId) -> None:
        self._last.pop(context, None)
        self._mean.pop(context, None)

    def settled(self, context: ContextId) -> float:
        return self._mean.get(context, 0.0)

    def overdue(self, context: ContextId) -> tuple[float, int]:
        last = self._last[context]
        return last + self._mean.get(context, 0.0), last


def rank(ranking: Ranking, context: ContextId, tick: int) -> float:
    if (due := ranking.overdue(context)) is not None and due[0] < tick:
        return float(tick - due[1])
    return ranking.settled(context)


class ContextHeap:
    """Some contexts, in the order of a ranking. ``add`` renews a member's place when the ranking has news of it."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self._entry: dict[ContextId, int] = {}
        """Serial number of the member's valid entry; older ones are skipped where they come up."""
        self._serial = 0
        self._settled: list[tuple[float, int, ContextId]] = []
        self._due: list[tuple[float, int, ContextId, int]] = []
        """From when on, entry, context, last use."""
        self._overdue: list[tuple[float, int, ContextId]] = []

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, context: object) -> bool:
        return context in self._entry

    def add(self, context: ContextId) -> None:
        """Become a member, or be ranked anew."""
        self._serial += 1
        self._entry[context] = self._serial
        heapq.heappush(self._settled, (-self.ranking.settled(context), -self._serial, context))
        if (due := self.ranking.overdue(context)) is not None:
            heapq.heappush(self._due, (due[0], self._serial, context, due[1]))
        if len(self._settled) + len(self._due) + len(self._overdue) > 4 * len(self._entry) + 64:
            self._renew()

    def discard(self, context: ContextId) -> None:
        self._entry.pop(context, None)

    def pop(self, tick: int) -> ContextId | None:
        """The member of the greatest rank leaves; of equals, that with the newest news: in strict turns it is last."""
        while self._due and self._due[0][0] < tick:
            _, serial, context, last = heapq.heappop(self._due)
            if self._entry.get(context) == serial:
                self._serial += 1
                self._entry[context] = self._serial
                heapq.heappush(self._overdue, (last, self._serial, context))
        self._skip(self._settled)
        self._skip(self._overdue)
        if not self._settled and not self._overdue:
            return None
        late = self._overdue and (not self._settled or tick - self._overdue[0][0] >= -self._settled[0][0])
        context = heapq.heappop(self._overdue if late else self._settled)[2]
        del self._entry[context]
        return context

    def _skip(self, heap: list[tuple[float, int, ContextId]]) -> None:
        while heap and self._entry.get(heap[0][2]) != abs(heap[0][1]):
            heapq.heappop(heap)

    def _renew(self) -> None:
        members = list(self._entry)
        self._settled, self._due, self._overdue = [], [], []
        for context in members:
            self.add(context)
