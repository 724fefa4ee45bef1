"""The queues of waiting calls, which every scheduling policy needs.

Law: pure. One queue for each pair of priority and app, first come first out, so the next call is found by comparing the
heads of the queues.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass

from llmaas.records import AppId, RequestId


@dataclass(slots=True, eq=False)
class ScheduledCall:
    """What a policy knows of a call. ``order`` is its number among waiting calls: it rises with each wait."""

    app: AppId
    priority: int
    order: int
    last_served: float
    """Second of the last step; before the first step, second at which the call came."""
    starved: float = 0.0
    """Seconds without service that ageing counts. A quantum of steps clears them."""
    quantum_used: float = 0.0
    """Steps since ``starved`` was cleared."""
    period: float = 0.0
    """Steps of this running period."""
    period_s: float = 0.0
    """Seconds of these steps."""
    switch_s: float = 0.0
    """Seconds that the switch took that began this running period."""
    waits: bool = True


class CallQueues(ABC):
    """Base of the policies: keeps the calls, and finds the waiting one with the least ``_rank``."""

    def __init__(self) -> None:
        self._calls: dict[RequestId, ScheduledCall] = {}
        self._queues: dict[tuple[int, AppId], OrderedDict[RequestId, None]] = {}
        self._order = itertools.count()
        self._waiting = 0

    @abstractmethod
    def _rank(self, request: RequestId, now: float) -> tuple[int, int, int]:
        """The order in which calls are served: least first. No two waiting calls have the same rank."""

    def _head_rank(self, request: RequestId, now: float) -> tuple[int, ...]:
        """The order in which calls are admitted: least first."""
        return self._rank(request, now)

    def add(self, request: RequestId, app: AppId, priority: int, now: float) -> None:
        call = self._calls[request] = ScheduledCall(app, priority, next(self._order), now)
        self._enqueue(request, call)

    def admit(self, request: RequestId) -> None:
        call = self._calls[request]
        self._dequeue(request, call)
        call.period = call.period_s = call.switch_s = 0.0

    def pause(self, request: RequestId) -> None:
        call = self._calls[request]
        call.order = next(self._order)
        self._enqueue(request, call)

    def remove(self, request: RequestId) -> None:
        call = self._calls.pop(request)
        if call.waits:
            self._dequeue(request, call)

    def prioritize(self, request: RequestId, priority: int) -> None:
        call = self._calls[request]
        waited = call.waits
        if waited:
            self._dequeue(request, call)
        call.priority = priority
        if waited:
            self._enqueue(request, call)

    def head(self, now: float) -> RequestId | None:
        firsts = (next(iter(queue)) for queue in self._queues.values())
        return min(firsts, key=lambda request: self._head_rank(request, now), default=None)

    def __len__(self) -> int:
        return self._waiting

    def _enqueue(self, request: RequestId, call: ScheduledCall) -> None:
        call.waits = True
        self._waiting += 1
        self._queues.setdefault((call.priority, call.app), OrderedDict())[request] = None

    def _dequeue(self, request: RequestId, call: ScheduledCall) -> None:
        call.waits = False
        self._waiting -= 1
        queue = self._queues[call.priority, call.app]
        del queue[request]
        if not queue:
            del self._queues[call.priority, call.app]
