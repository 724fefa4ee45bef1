"""Makes traces of a semi-synthetic phone: some days of one person's apps, each with a few conversations.

Law: the seed and the unlocks decide all. Real, as aggregates, are

* the gaps between unlocks: quantiles of 919 gaps of one phone in one month, from the sample data of the Python package
  niimpy 1.3.0 (MIT licence);
* of a log of foreground apps of 42 hours (285 activations, 27 apps): activations per unlock, seconds in an app, and how
  deep in the stack of recently used apps the next one lies.

Invented are that an activation calls the language model with the chance ``ASKS``, which conversation of the app it is,
and how much it adds.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from llmaas.traces.call import TraceCall
from llmaas.traces.growth import Conversations
from llmaas.traces.switching import HOURS, KINDS

Quantiles = Sequence[tuple[float, float]]

UNLOCK_GAP_S: Quantiles = (
    (0.0, 5),
    (0.05, 57),
    (0.1, 105),
    (0.25, 218),
    (0.5, 591),
    (0.75, 1841),
    (0.9, 5661),
    (0.95, 11168),
    (0.99, 44782),
    (1.0, 67256),
)
ACTIVATIONS: Quantiles = ((0.0, 1), (0.25, 1), (0.5, 2), (0.75, 6), (0.9, 10), (0.99, 22), (1.0, 30))
DWELL_S: Quantiles = ((0.0, 1), (0.1, 2), (0.25, 4), (0.5, 25), (0.75, 57), (0.9, 188), (0.99, 837), (1.0, 1500))
STACK_DISTANCE = (65, 59, 38, 17, 14, 8, 6, 11, 7, 5, 3, 4, 4, 4, 2, 2, 2, 0, 1, 2, 2, 1, 0, 1)
"""How often the next app was the one used last, the one used before that, and so on."""
APPS = 27

ASKS = 0.4
CONVERSATIONS = 3
"""Conversations of an app. The one used last is continued four times in seven, the one before twice, the third once."""


def make(
    seed: int = 1, *, limit: int = 4096, hours: float = HOURS, unlocks: Iterable[float] | None = None
) -> Iterator[TraceCall]:
    """A trace for a model of ``limit`` tokens. ``unlocks``: real ones, in seconds, in place of drawn gaps."""
    rng = random.Random(f"phone {limit} {seed}")
    kinds = list(KINDS)
    stack = list(range(APPS))
    recent = [list(range(CONVERSATIONS)) for _ in stack]
    conversations = Conversations(limit, rng)
    real = None if unlocks is None else iter(unlocks)
    now = _unlock(0.0, real, rng)
    while now < hours * 3600:
        t = now
        for _ in range(round(_draw(ACTIVATIONS, rng))):
            app = stack.pop(rng.choices(range(len(STACK_DISTANCE)), STACK_DISTANCE)[0])
            stack.insert(0, app)
            if rng.random() < ASKS:
                number = recent[app].pop(rng.choices(range(CONVERSATIONS), (4, 2, 1))[0])
                recent[app].insert(0, number)
                yield conversations.call(t, f"app{app}", f"{app}-{number}", KINDS[kinds[app % len(kinds)]])
            t += _draw(DWELL_S, rng)
        now = max(_unlock(now, real, rng), t)


def _unlock(now: float, real: Iterator[float] | None, rng: random.Random) -> float:
    """When the next unlock after the one at ``now`` is."""
    return now + _draw(UNLOCK_GAP_S, rng) if real is None else next(real, math.inf)


def _draw(quantiles: Quantiles, rng: random.Random) -> float:
    """A value drawn from the distribution, which is linear between the known quantiles."""
    u = rng.random()
    i = min(bisect_right([p for p, _ in quantiles], u), len(quantiles) - 1)
    (p0, x0), (p1, x1) = quantiles[i - 1], quantiles[i]
    return x0 + (x1 - x0) * (u - p0) / (p1 - p0)
