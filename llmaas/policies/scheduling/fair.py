"""The default policy ("fair"): priorities that age, equal shares for apps, and a quantum for each running period.

Law: as in ``base``.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

from llmaas.policies.scheduling.call_queues import CallQueues
from llmaas.policies.scheduling.recent_use import RecentUse
from llmaas.records import AppId, RequestId

_PROMPT, _ANSWER = 1, 2
"""What a token that was read or generated adds to its app's counter (VTC, arXiv 2401.00588: generating costs more)."""
_MUCH_MORE = 1.5
"""An app that was served so many times as much lately as another one, and wants, lets the other's prompts go first."""
_FAR_MORE = 3.0
"""An app that was served so many times as much lately as another one floods. Apps that ask alike hardly ever do."""
_MANY_APPS = 256
"""Counters of apps without calls are cleaned up beyond so many."""
_RETURNS_S = 5.0
"""An app may come back so long after it was served last."""
_ABSENT = 16
"""Apps without calls that are looked at, at most: those that left last."""
_WORTH_SWITCHING = 2.0
"""A running period lasts at least so many times as long as its switch took, whatever the quantum is. Otherwise slow
switches would leave no time for anything else."""


class Fair(CallQueues):
    """Virtual Token Counter (VTC, arXiv 2401.00588) inside each priority, with ageing and time slices.

    Ageing: a call that is not served becomes more urgent by one priority every ``ageing_s`` seconds, until it was
    served for ``quantum`` steps. An aged call shares the steps of the calls that are as urgent, but preempts none.

    Shares: of the apps whose calls are the most urgent, the one that was served the fewest tokens is next, and of its
    calls the one that waits longest. An app that comes back starts at the counter of the least served app, so no app
    saves up credit while it is idle.

    Time slices: after ``quantum`` steps a running call gives way to waiting calls of the same urgency. Places come
    before time: a call of an app that has two more in CELLS than another app, and was served no less, gives way to the
    other's at once.

    Prompts: those of an app wait for another's if it was served, and wants, half as much again. What was served lately
    counts, and little of what was served when nobody else wanted anything.

    >>> policy = Fair(quantum=64, ageing_s=5.0)
    >>> mail, home = RequestId(1), RequestId(2)
    >>> policy.add(mail, AppId("1000/mail"), priority=5, now=0.0)
    >>> policy.add(home, AppId("1000/home"), priority=1, now=0.0)
    >>> policy.head(now=0.0)
    2
    >>> policy.urgency(mail, now=10.0)  # not served for twice the ageing time
    3
    """

    def __init__(self, quantum: int = 64, ageing_s: float = 5.0) -> None:
        super().__init__()
        self._quantum, self._ageing_s = quantum, ageing_s
        self._share: dict[AppId, int] = {}
        """The counter of each app: tokens that it was served."""
        self._active: dict[AppId, int] = {}
        """Number of calls of each app that has any."""
        self._absent: dict[AppId, float] = {}
        """When each app without calls was served last, those that left last at the end."""
        self._recent = RecentUse()
        self._running = Counter[AppId]()
        """Number of calls of each app in CELLS."""
        self._least = 0
        """Least counter of an active app, as of when there last was one."""

    def add(self, request: RequestId, app: AppId, priority: int, now: float) -> None:
        if app not in self._active:
            self._share[app] = max(self._share.get(app, 0), self._least_share())
            self._absent.pop(app, None)
        self._active[app] = self._active.get(app, 0) + 1
        super().add(request, app, priority, now)

    def admit(self, request: RequestId) -> None:
        super().admit(request)
        self._running[self._calls[request].app] += 1

    def pause(self, request: RequestId) -> None:
        super().pause(request)
        self._running[self._calls[request].app] -= 1

    def remove(self, request: RequestId) -> None:
        call = self._calls[request]
        app = call.app
        if not call.waits:
            self._running[app] -= 1
        super().remove(request)
        self._least = self._least_share()
        self._active[app] -= 1
        if not self._active[app]:
            del self._active[app]
            del self._running[app]
            self._absent[app] = call.last_served
            if len(self._absent) > _MANY_APPS:
                del self._absent[next(iter(self._absent))]
            if len(self._share) > _MANY_APPS:  # a counter that is no higher than a newcomer's need not be kept
                least = self._least_share()
                self._share = {a: n for a, n in self._share.items() if n > least or a in self._active}

    def _head_rank(self, request: RequestId, now: float) -> tuple[int, int, int, int]:
        """Of apps that were served alike, the one with fewer calls in CELLS."""
        urgency, share, order = self._rank(request, now)
        return urgency, share, self._running[self._calls[request].app], order

    def switched_in(self, request: RequestId, seconds: float) -> None:
        self._calls[request].switch_s = seconds

    def served(self, request: RequestId, began: float, now: float, steps: float, prompt: int, answer: int) -> None:
        call = self._calls[request]
        call.starved += max(0.0, began - call.last_served)
        call.last_served = now
        call.period += steps
        call.period_s += now - began if steps else 0.0
        call.quantum_used += steps
        if call.quantum_used >= self._quantum:
            call.starved = call.quantum_used = 0.0
        tokens = _PROMPT * prompt + _ANSWER * answer
        self._share[call.app] += tokens
        self._recent.add(call.app, tokens, now, others=len(self._active) > 1)

    def urgency(self, request: RequestId, now: float) -> int:
        call = self._calls[request]
        starved = call.starved + max(0.0, now - call.last_served)
        return max(0, call.priority - int(starved / self._ageing_s))

    def select(self, ready: list[RequestId], now: float) -> list[RequestId]:
        most_urgent = min((self._calls[request].priority for request in ready), default=0)
        found = [request for request in ready if self.urgency(request, now) <= most_urgent]
        return sorted(found, key=lambda request: self._rank(request, now))

    def outdoes(self, request: RequestId, wants: int, other: RequestId, other_wants: int, now: float) -> bool:
        app, than = self._calls[request].app, self._calls[other].app
        return self._recent.of(app, now) + wants > _MUCH_MORE * (self._recent.of(than, now) + other_wants)

    def floods(self, request: RequestId, now: float) -> bool:
        served = self._recent.of(self._calls[request].app, now)
        for app, when in islice(reversed(self._absent.items()), _ABSENT):
            if now - when < _RETURNS_S and served > _FAR_MORE * self._recent.of(app, now):
                return True
        return False

    def has_others(self, request: RequestId, now: float) -> bool:
        if len(self._active) > 1:
            return True
        return any(now - when < _RETURNS_S for when in islice(reversed(self._absent.values()), _ABSENT))

    def gives_way(self, running: RequestId, waiting: RequestId, now: float) -> bool:
        if self._calls[waiting].priority < self.urgency(running, now):
            return True
        call, other = self._calls[running], self._calls[waiting]
        if (
            self._running[call.app] > self._running[other.app] + 1
            and other.priority <= self.urgency(running, now)
            and self._share[other.app] <= self._share[call.app]
        ):  # if its app had been served less, it would be the next to be admitted again, and so on without end
            return True
        if call.period < self._quantum or call.period_s < _WORTH_SWITCHING * call.switch_s:
            return False
        return self._rank(waiting, now)[:2] <= self._rank(running, now)[:2]

    def burst(self, running: RequestId) -> int:
        left = self._quantum - self._calls[running].period
        return max(1, math.ceil(left)) if left > 0 else 1

    def _rank(self, request: RequestId, now: float) -> tuple[int, int, int]:
        call = self._calls[request]
        return self.urgency(request, now), self._share[call.app], call.order

    def _least_share(self) -> int:
        """The counter of the least served active app."""
        return min((self._share[app] for app in self._active), default=self._least)
