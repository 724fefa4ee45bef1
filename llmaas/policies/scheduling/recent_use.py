"""How much each app was served lately.

Law: pure. What was served one half-life ago counts half, so no app is held to what it took long ago, and none that is
held back waits for ever.
"""

from __future__ import annotations

import math

from llmaas.records import AppId

HALF_LIFE_S = 0.5
"""Some steps of the engine. With 2 s, an app that asks now and then had taken more than one that begins to flood."""
_MANY_APPS = 32
"""Beyond so many apps, or twice those that were kept last, the ones with next to nothing are forgotten."""
_NOTHING = 0.5
"""Tokens that are as good as none."""


class RecentUse:
    """Tokens by app. Times are in seconds.

    >>> use = RecentUse()
    >>> use.add(AppId("1000/mail"), 100, now=0.0)
    >>> use.of(AppId("1000/mail"), now=HALF_LIFE_S)
    50.0
    """

    def __init__(self) -> None:
        self._tokens: dict[AppId, tuple[float, float]] = {}
        """What each app was served, as of when it was served last."""
        self._many = _MANY_APPS

    def __len__(self) -> int:
        """Apps that are known."""
        return len(self._tokens)

    def add(self, app: AppId, tokens: float, now: float) -> None:
        self._tokens[app] = self.of(app, now) + tokens, now
        if len(self._tokens) > self._many:
            self._tokens = {a: found for a, found in self._tokens.items() if self.of(a, now) > _NOTHING}
            self._many = max(_MANY_APPS, 2 * len(self._tokens))

    def of(self, app: AppId, now: float) -> float:
        tokens, when = self._tokens.get(app, (0.0, now))
        return tokens * math.pow(0.5, max(0.0, now - when) / HALF_LIFE_S)
