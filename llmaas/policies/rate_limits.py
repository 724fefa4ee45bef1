"""Throughput limits: when those who are limited may go on.

Law: pure. A limit is a line of moments (GCRA, ITU-T I.371): what was served moves the next moment on by tokens / rate,
and being late is made up for within ``_SLACK_S``, so that the mean over a second or more is the rate.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

_SLACK_S = 0.2
"""So much time that a call could have used and did not is not lost to it; more is."""
_FEW = 256


class Gcra:
    """One limit. ``rate``: tokens per second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.ready = -math.inf

    def charge(self, tokens: float, began: float) -> None:
        """A step that began at ``began`` served so many tokens."""
        earliest = began - _SLACK_S if self.ready > -math.inf else began
        self.ready = max(self.ready, earliest) + tokens / self.rate


class RateLimits:
    """Limits by name; a name without one of its own has the ``default``, None: it is free.

    Names come and go: of those that owe nothing no more than some are remembered.
    """

    def __init__(self, default: float | None = None) -> None:
        self._default = default
        self._own: dict[Hashable, float | None] = {}
        self._paces: dict[Hashable, Gcra] = {}
        self._most = _FEW

    def __bool__(self) -> bool:
        return self._default is not None or bool(self._own)

    def set(self, name: Hashable, rate: float | None) -> None:
        """A new limit for ``name``, None for no limit. What was served already still counts."""
        self._own[name] = rate
        if rate is None:
            self._paces.pop(name, None)
            if self._default is None:
                del self._own[name]
        elif name in self._paces:
            self._paces[name].rate = rate

    def limits(self, *names: Hashable) -> bool:
        """Whether any of ``names`` has a limit."""
        return any(self._own.get(name, self._default) is not None for name in names)

    def ready(self, *names: Hashable) -> float:
        """The moment from which all of ``names`` may be served."""
        return max((self._paces[name].ready for name in names if name in self._paces), default=-math.inf)

    def charge(self, name: Hashable, tokens: float, began: float) -> None:
        if (rate := self._own.get(name, self._default)) is None:
            return
        if name not in self._paces:
            if len(self._paces) >= self._most:
                self._forget(began)
            self._paces[name] = Gcra(rate)
        self._paces[name].charge(tokens, began)

    def _forget(self, now: float) -> None:
        self._paces = {name: pace for name, pace in self._paces.items() if pace.ready > now - _SLACK_S}
        self._most = max(_FEW, 2 * len(self._paces))
