"""The default: priorities that age, apps that share, turns that end.

Law: as in ``base``.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass

from llmaas.records import AppId, RequestId

_PROMPT, _ANSWER = 1, 2
"""What tokens count for an app's share, as in VTC (arXiv 2401.00588): one that is generated more than one read."""
_MANY_APPS = 256
_WORTH_COMING = 2.0
"""A turn lasts so many times as long as coming back for it took, whatever the quantum: or nothing else would happen."""


@dataclass(slots=True, eq=False)
class _Call:
    app: AppId
    priority: int
    order: int
    """Among those that wait."""
    last: float
    """When it was served last; at first, when it came."""
    unserved: float = 0.0
    """Seconds that it was not served, since that was made up for."""
    made_up: float = 0.0
    """Steps since it began to be served again."""
    turn: float = 0.0
    """Steps since it was admitted."""
    turn_s: float = 0.0
    """Seconds of these steps."""
    back_s: float = 0.0
    """Seconds that it took to come back for this turn."""
    waits: bool = True


class Fair:
    """Priorities with ageing, apps of one priority by tokens served, turns of ``quantum`` steps.

    A call that is not served becomes more urgent by one every ``ageing_s`` seconds, until it was served for a quantum:
    it then shares the steps of those that are as urgent, but pushes nobody aside. Of the apps with the most urgent
    calls, the one whose calls got the fewest tokens is next (Virtual Token Counter, arXiv 2401.00588: an app that comes
    back begins where the least served one is, so nobody saves up while idle); of its calls, the one that waits longest.
    """

    def __init__(self, quantum: int = 64, ageing_s: float = 5.0) -> None:
        self._quantum, self._ageing_s = quantum, ageing_s
        self._calls: dict[RequestId, _Call] = {}
        self._lanes: dict[tuple[int, AppId], OrderedDict[RequestId, None]] = {}
        self._order = itertools.count()
        self._waiting = 0
        self._share: dict[AppId, int] = {}
        """Tokens served per app."""
        self._active: dict[AppId, int] = {}
        """Calls per app that has any."""
        self._least = 0
        """Share of the least served active app when there last was one."""

    # -- who there is

    def add(self, request: RequestId, app: AppId, priority: int, now: float) -> None:
        if app not in self._active:
            self._share[app] = max(self._share.get(app, 0), self._floor())
        self._active[app] = self._active.get(app, 0) + 1
        call = self._calls[request] = _Call(app, priority, next(self._order), now)
        self._enter(request, call)

    def admit(self, request: RequestId) -> None:
        call = self._calls[request]
        self._leave(request, call)
        call.turn = call.turn_s = call.back_s = 0.0

    def pause(self, request: RequestId) -> None:
        call = self._calls[request]
        call.order = next(self._order)
        self._enter(request, call)

    def remove(self, request: RequestId) -> None:
        call = self._calls.pop(request)
        if call.waits:
            self._leave(request, call)
        self._least = self._floor()
        self._active[call.app] -= 1
        if not self._active[call.app]:
            del self._active[call.app]
            if len(self._share) > _MANY_APPS:  # who has no more than newcomers get needs no note
                self._share = {a: n for a, n in self._share.items() if n > self._floor() or a in self._active}

    def prioritize(self, request: RequestId, priority: int) -> None:
        call = self._calls[request]
        waited = call.waits
        if waited:
            self._leave(request, call)
        call.priority = priority
        if waited:
            self._enter(request, call)

    def served(self, request: RequestId, began: float, now: float, steps: float, prompt: int, answer: int) -> None:
        call = self._calls[request]
        call.unserved += max(0.0, began - call.last)
        call.last = now
        call.turn += steps
        call.turn_s += now - began if steps else 0.0
        call.made_up += steps
        if call.made_up >= self._quantum:
            call.unserved = call.made_up = 0.0
        self._share[call.app] += _PROMPT * prompt + _ANSWER * answer

    def switched_in(self, request: RequestId, seconds: float) -> None:
        self._calls[request].back_s = seconds

    def __len__(self) -> int:
        return self._waiting

    def _enter(self, request: RequestId, call: _Call) -> None:
        call.waits = True
        self._waiting += 1
        self._lanes.setdefault((call.priority, call.app), OrderedDict())[request] = None

    def _leave(self, request: RequestId, call: _Call) -> None:
        call.waits = False
        self._waiting -= 1
        lane = self._lanes[call.priority, call.app]
        del lane[request]
        if not lane:
            del self._lanes[call.priority, call.app]

    def _floor(self) -> int:
        return min((self._share[app] for app in self._active), default=self._least)

    # -- what is asked

    def head(self, now: float) -> RequestId | None:
        firsts = (next(iter(lane)) for lane in self._lanes.values())
        return min(firsts, key=lambda request: self._rank(request, now), default=None)

    def urgency(self, request: RequestId, now: float) -> int:
        call = self._calls[request]
        unserved = call.unserved + max(0.0, now - call.last)
        return max(0, call.priority - int(unserved / self._ageing_s))

    def select(self, ready: list[RequestId], now: float) -> list[RequestId]:
        most_urgent = min((self._calls[request].priority for request in ready), default=0)
        found = [request for request in ready if self.urgency(request, now) <= most_urgent]
        return sorted(found, key=lambda request: self._rank(request, now))

    def gives_way(self, running: RequestId, waiting: RequestId, now: float) -> bool:
        theirs = self.urgency(running, now)
        if self._calls[waiting].priority < theirs:
            return True
        call = self._calls[running]
        if call.turn < self._quantum or call.turn_s < _WORTH_COMING * call.back_s:
            return False
        return self._rank(waiting, now)[:2] <= self._rank(running, now)[:2]

    def burst(self, running: RequestId) -> int:
        left = self._quantum - self._calls[running].turn
        return max(1, math.ceil(left)) if left > 0 else 1

    def _rank(self, request: RequestId, now: float) -> tuple[int, int, int]:
        call = self._calls[request]
        return self.urgency(request, now), self._share[call.app], call.order
