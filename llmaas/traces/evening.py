"""Makes a small synthetic sample: four apps of one evening, in bursts, with a favourite app.

Law: the seed decides all; seed 20 is traces/evening.jsonl.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from llmaas.traces.call import TraceCall

APPS = {"messenger": 0.5, "mail": 0.2, "notes": 0.2, "assistant": 0.1}
"""App -> how often the user turns to it."""
CALLS = 120
GAP_S = 90.0
STAY = 0.55
"""Chance that the next call is of the same app."""
SEED = 20


def make(seed: int = SEED, *, limit: int = 3500) -> Iterator[TraceCall]:
    rng = random.Random(seed)
    t, app = 0.0, "messenger"
    lengths: dict[tuple[str, str], int] = {}
    for _ in range(CALLS):
        t += rng.expovariate(1 / GAP_S)
        if rng.random() > STAY:
            app = rng.choices(list(APPS), list(APPS.values()))[0]
        context = f"c{min(int(rng.expovariate(1.0)), 3)}"
        first = (app, context) not in lengths
        prompt = rng.randrange(400, 1200) if first else rng.randrange(10, 120)
        generate = rng.randrange(10, 80)
        if lengths.get((app, context), 0) + prompt + generate > limit:
            continue
        lengths[app, context] = lengths.get((app, context), 0) + prompt + generate
        yield TraceCall(round(t, 2), app, context, prompt, generate)
