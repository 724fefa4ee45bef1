"""Which app of the demo calls next.

Law: the same plan gives the same order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from llmaas.cli.demo.plan import AFTERWARDS, Plan

_RETURNS = (5, 5, 4, 2, 1, 1, 1, 1)
"""Weights of returning to the app used last, the one before, and so on: phones are used like this (most returns
are to one of the last three apps)."""


def schedule(plan: Plan) -> Iterator[str]:
    """Whose turn it is: every app once, then mostly returns to apps that were used not long ago."""
    # Not for secrets: the same seed must give the same demo.
    dice = random.Random(plan.seed)
    left = {app.app: app.n_questions - AFTERWARDS for app in plan.apps}
    recent = [app.app for app in plan.apps]
    dice.shuffle(recent)
    for turn in range(plan.turns_each * len(recent)):
        able = [app for app in recent if left[app] > 0]
        if not able:
            return
        weights = _RETURNS[: len(able)]
        app = recent[-1] if turn < len(recent) else dice.choices(able, weights)[0]
        left[app] -= 1
        recent.remove(app)
        recent.insert(0, app)
        yield app
