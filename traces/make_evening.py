"""Makes evening.jsonl: four apps of one evening, in bursts, with a favourite app (a small, synthetic sample).

python traces/make_evening.py > traces/evening.jsonl
"""

from __future__ import annotations

import json
import random

APPS = {"messenger": 0.5, "mail": 0.2, "notes": 0.2, "assistant": 0.1}
"""App -> how often the user turns to it."""
CALLS = 120
GAP_S = 90.0
STAY = 0.55
"""Chance that the next call is of the same app."""


def main() -> None:
    rng = random.Random(20)
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
        if lengths.get((app, context), 0) + prompt + generate > 3500:
            continue
        lengths[app, context] = lengths.get((app, context), 0) + prompt + generate
        print(json.dumps({"t": round(t, 2), "app": app, "context": context, "prompt": prompt, "generate": generate}))


if __name__ == "__main__":
    main()
