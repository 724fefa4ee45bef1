"""Tells calls that wait for their turn how many go before them, and about how long that will take.

Law: it changes nothing of who is served when, and tells only calls that asked for progress, at most once a second. A
call that has been admitted or has ended is told nothing more. Hints are no calls here: they wait until nobody else
wants anything.
"""

from __future__ import annotations

import asyncio
import math

from llmaas.calls import Piece, Queued
from llmaas.clock import Clock
from llmaas.policies.queue_wait import WORTH_TELLING_S, QueueWait
from llmaas.records import RequestId
from llmaas.service.call import Call

EVERY_S = 1.0


class QueueTeller:
    """For one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wait = QueueWait()
        self._waiting: dict[RequestId, Call] = {}
        """Calls that have not been admitted yet, in the order in which they came."""
        self._running: set[RequestId] = set()
        self._due: dict[RequestId, float] = {}
        """When calls that wait, and have asked, are told next."""
        self._timer: asyncio.TimerHandle | None = None

    def begun(self, call: Call) -> None:
        """A call was submitted."""
        if call.hint:
            return
        self._waiting[call.id] = call
        if call.spec.progress:
            self._due[call.id] = self._clock.now() + WORTH_TELLING_S
            if self._timer is None:
                self._arm()

    def admitted(self, call: Call) -> None:
        """A call's first admission. Others learn from it how long they will wait."""
        if self._waiting.pop(call.id, None) is not None:
            self._running.add(call.id)
            self._due.pop(call.id, None)
            self._wait.admitted(call.submitted, self._clock.now())

    def ended(self, call: Call) -> None:
        self._waiting.pop(call.id, None)
        self._running.discard(call.id)
        self._due.pop(call.id, None)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WORTH_TELLING_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        if not self._due:
            return
        now = self._clock.now()
        first = min(call.submitted for call in self._waiting.values())
        for ahead, call in enumerate(self._in_order()):
            if self._due.get(call.id, math.inf) > now:
                continue
            self._due[call.id] = now + EVERY_S
            if ahead or self._running:  # else its text is being read: it waits for nobody
                call.emit(Piece("", (), queued=Queued(ahead, self._wait.expected_s(ahead, first, now))))
        self._arm()  # not for each call when it is due: all that wait are put in order each time

    def _in_order(self) -> list[Call]:
        """The most urgent first, and of these the one that came first. Fair shares of the apps may have it
        otherwise."""
        return sorted(self._waiting.values(), key=lambda call: (call.control.priority, call.id))
