"""Limits in tokens per second: the moment at which a limited call or app may be served again.

Law: pure. This is the generic cell rate algorithm (GCRA, ITU-T I.371) without a burst: serving tokens moves the next
allowed moment on by tokens / rate. A step that begins late makes up for at most ``_SLACK_S``, so the mean over a second
or more is the rate.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

_SLACK_S = 0.2
"""Seconds of allowed but unused time that a limit makes up for. (A loop that wakes a little late keeps its rate.)"""
_FEW = 256
"""Names without a debt are forgotten when there are more than so many."""


class Gcra:
    """One limit of ``rate`` tokens per second; ``ready`` is the second from which the next step may begin.

    >>> limit = Gcra(rate=10.0)
    >>> limit.charge(tokens=5, began=100.0)
    >>> limit.ready
    100.5
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.ready = -math.inf

    def charge(self, tokens: float, began: float) -> None:
        """A step that began at second ``began`` served ``tokens`` tokens."""
        earliest = began - _SLACK_S if self.ready > -math.inf else began
        self.ready = max(self.ready, earliest) + tokens / self.rate


class RateLimits:
    """Limits by name. A name without a limit of its own has ``default``, in tokens per second; None is no limit.

    Names come and go, and only names that owe time must be remembered.

    >>> limits = RateLimits(default=None)
    >>> limits.set("mail", 2.0)
    >>> for name in ("mail", "home"):
    ...     limits.charge(name, tokens=4, began=0.0)
    >>> limits.ready("mail"), limits.ready("home"), limits.ready("mail", "home")
    (2.0, -inf, 2.0)
    """

    def __init__(self, default: float | None = None) -> None:
        self._default = default
        self._own: dict[Hashable, float | None] = {}
        """Limits that were set for single names."""
        self._states: dict[Hashable, Gcra] = {}
        self._most = _FEW
        """Number of states at which those that owe nothing are forgotten."""

    def __bool__(self) -> bool:
        """Whether there can be any limit."""
        return self._default is not None or bool(self._own)

    def set(self, name: Hashable, rate: float | None) -> None:
        """Give ``name`` a limit of its own; None: no limit. What it was served already still counts."""
        self._own[name] = rate
        if rate is None:
            self._states.pop(name, None)
            if self._default is None:
                del self._own[name]
        elif name in self._states:
            self._states[name].rate = rate

    def limits(self, *names: Hashable) -> bool:
        """Whether any of ``names`` has a limit."""
        return any(self._own.get(name, self._default) is not None for name in names)

    def ready(self, *names: Hashable) -> float:
        """The second from which all of ``names`` may be served; -inf: always."""
        return max((self._states[name].ready for name in names if name in self._states), default=-math.inf)

    def charge(self, name: Hashable, tokens: float, began: float) -> None:
        """A step that began at second ``began`` served ``name`` so many tokens."""
        if (rate := self._own.get(name, self._default)) is None:
            return
        if name not in self._states:
            if len(self._states) >= self._most:
                self._forget(began)
            self._states[name] = Gcra(rate)
        self._states[name].charge(tokens, began)

    def _forget(self, now: float) -> None:
        """Drop the states that owe nothing."""
        self._states = {name: state for name, state in self._states.items() if state.ready > now - _SLACK_S}
        self._most = max(_FEW, 2 * len(self._states))
