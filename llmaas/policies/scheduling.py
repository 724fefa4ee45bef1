"""F3. Whose turn it is, and what one engine step holds.

Law: the queue yields each waiting request once; a policy sees requests and sizes, never contexts' content.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from llmaas.records import RequestId


class SchedulingPolicy(Protocol):
    def add(self, request: RequestId, priority: int, now: float) -> None: ...

    def remove(self, request: RequestId) -> None:
        """The request was admitted or cancelled."""

    def head(self, now: float) -> RequestId | None:
        """The request to admit next, or None if none waits."""

    def __len__(self) -> int: ...


class Fifo:
    """First come, first served within a priority; 0 is the most urgent of 0 .. 9."""

    def __init__(self) -> None:
        self._lanes: list[OrderedDict[RequestId, None]] = [OrderedDict() for _ in range(10)]
        self._lane_of: dict[RequestId, int] = {}

    def add(self, request: RequestId, priority: int, now: float) -> None:
        self._lanes[priority][request] = None
        self._lane_of[request] = priority

    def remove(self, request: RequestId) -> None:
        del self._lanes[self._lane_of.pop(request)][request]

    def head(self, now: float) -> RequestId | None:
        for lane in self._lanes:
            if lane:
                return next(iter(lane))
        return None

    def __len__(self) -> int:
        return len(self._lane_of)


SCHEDULING: dict[str, Callable[[], SchedulingPolicy]] = {"fifo": Fifo}
