"""How much each app was served lately.

Law: pure. What was served one half-life ago counts half, so no app is held to what it took long ago, and none that is
held back waits for ever. What an app took while no other one used the engine counts less, as it took it from nobody.
"""

from __future__ import annotations

import math

from llmaas.records import AppId

HALF_LIFE_S = 0.5
"""Some steps of the engine. With 2 s, an app that asks now and then had taken more than one that begins to flood."""
_ALONE_S = 1.0
"""An app is alone if no other one has calls, or was served for so long."""
_ALONE = 0.25
"""What a token counts that an app took alone. If it counted whole, an app that asks now and then would have taken more
than one that begins to flood, and its prompts would share steps with the other's for some hundred milliseconds. If it
counted nothing, an app that was always there would not make room at once for one that comes."""
_MANY_APPS = 32
"""Beyond so many apps, or twice those that were kept last, the ones with next to nothing are forgotten."""
_NOTHING = 0.5
"""Tokens that are as good as none."""


class RecentUse:
    """Tokens by app. Times are in seconds.

    >>> use = RecentUse()
    >>> use.add(AppId("1000/mail"), 100, now=0.0, others=True)
    >>> use.of(AppId("1000/mail"), now=HALF_LIFE_S)
    50.0
    """

    def __init__(self) -> None:
        self._tokens: dict[AppId, tuple[float, float]] = {}
        """What each app was served, as of when it was served last."""
        self._many = _MANY_APPS
        self._last: tuple[AppId | None, float] = None, -math.inf
        """The app that was served last, and when."""
        self._before = -math.inf
        """When any other app than that was served last."""

    def __len__(self) -> int:
        """Apps that are known."""
        return len(self._tokens)

    def add(self, app: AppId, tokens: float, now: float, *, others: bool = False) -> None:
        """The app was served so many tokens. ``others``: whether another one has calls."""
        last, when = self._last
        if app != last:
            self._before = when
        self._last = app, now
        alone = not others and now - self._before > _ALONE_S
        self._tokens[app] = self.of(app, now) + tokens * (_ALONE if alone else 1.0), now
        if len(self._tokens) > self._many:
            self._tokens = {a: found for a, found in self._tokens.items() if self.of(a, now) > _NOTHING}
            self._many = max(_MANY_APPS, 2 * len(self._tokens))

    def of(self, app: AppId, now: float) -> float:
        tokens, when = self._tokens.get(app, (0.0, now))
        return tokens * math.pow(0.5, max(0.0, now - when) / HALF_LIFE_S)
