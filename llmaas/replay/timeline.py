"""Virtual time: what happens when, and resources that serve one job after another.

Law: two things at the same moment happen in the order in which they were planned, so that a replay is deterministic.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Callable


class Resource(enum.Enum):
    """Each does one job after another, as in the live service."""

    ENGINE = "engine"
    LOADER = "loader"
    CODER = "coder"
    DISK = "disk"


class Timeline:
    """Virtual seconds, from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._free_at = dict.fromkeys(Resource, 0.0)

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Have ``act`` called when it is ``when``."""
        heapq.heappush(self._queue, (when, next(self._order), act))

    def work(self, resource: Resource, seconds: float, *, after: float = 0.0) -> float:
        """A job for a resource, which may begin at ``after``; when it will be done."""
        self._free_at[resource] = max(self.now, after, self._free_at[resource]) + seconds
        return self._free_at[resource]

    def run(self) -> None:
        """Let time pass until nothing is planned any more."""
        while self._queue:
            self.now, _, act = heapq.heappop(self._queue)
            act()
