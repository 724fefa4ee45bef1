"""Tells calls that wait for their turn how many go before them, and about how long that will take.

Law: it changes nothing of who is served when, and tells only calls that asked for progress, at most once a second. A
call that has been admitted or has ended is told nothing more.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from llmaas.calls import Piece, Queued
from llmaas.clock import Clock
from llmaas.policies.queue_wait import WORTH_TELLING_S, QueueWait
from llmaas.records import RequestId
from llmaas.service.call import Call

EVERY_S = 1.0


class QueueTeller:
    """``calls``: all that wait or run. For one event loop."""

    def __init__(self, calls: Mapping[RequestId, Call], clock: Clock) -> None:
        self._calls, self._clock = calls, clock
        self._wait = QueueWait()
        self._due: dict[RequestId, float] = {}
        """When calls that wait, and have asked, are told next."""
        self._timer: asyncio.TimerHandle | None = None

    def begun(self, call: Call) -> None:
        """A call was submitted."""
        if not call.spec.progress or call.hint:
            return
        self._due[call.id] = self._clock.now() + WORTH_TELLING_S
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WORTH_TELLING_S, self._tell)

    def admitted(self, call: Call) -> None:
        """A call's first admission. Others learn from it how long they will wait."""
        if not call.hint:  # it waits until nobody else wants anything
            self._wait.admitted(call.submitted, self._clock.now())
        self._due.pop(call.id, None)

    def ended(self, call: Call) -> None:
        self._due.pop(call.id, None)

    def _tell(self) -> None:
        self._timer = None
        if not self._due:
            return
        now, waiting = self._clock.now(), self._waiting()
        first = min((call.submitted for call in waiting), default=now)
        for ahead, call in enumerate(waiting):
            if self._due.get(call.id, math.inf) > now:
                continue
            self._due[call.id] = now + EVERY_S
            if ahead or len(self._calls) > len(waiting):  # else its text is being read: it waits for nobody
                call.emit(Piece("", (), queued=Queued(ahead, self._wait.expected_s(ahead, first, now))))
        # Not for each call when it is due: all that wait are put in order each time.
        self._timer = asyncio.get_running_loop().call_later(WORTH_TELLING_S, self._tell)

    def _waiting(self) -> list[Call]:
        """Calls that have not been admitted: the most urgent first, and of these the one that came first. Fair shares
        of the apps may have it otherwise."""
        found = [call for call in self._calls.values() if call.progress.admitted is None and not call.hint]
        return sorted(found, key=lambda call: (call.control.priority, call.id))
