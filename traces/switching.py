"""LLMS' kind of traces (arXiv 2403.11805, section 4.1): 72 hours, one call in five minutes, 2 .. 64 contexts.

python traces/switching.py random 16 > trace.jsonl

The paper describes its traces and does not publish them; what it leaves open is filled in here and named so. Calls are
a Poisson process. Each context belongs to one of six kinds of app, named for the paper's data sets, and grows per call
by as much as that data set's texts are long. Whose call is next:

* ``random``: any context's;
* ``markov``: one used recently; rank r of the least-recently-used stack with a chance that falls as 1 / (r + 1)
  (our reading of "recent favoured");
* ``gaussian``: popularity is a normal density of the growth per call of the context, around the mean of all of them
  (our reading of "Gaussian over delta length");
* ``turns``: the next one's, round and round. Not of the paper: the worst case of least recently used.

A context never outgrows the model: when it is full, a new conversation takes its place, and the old one is not called
again.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from collections.abc import Iterator

KINDS = {
    "agnews": (200, 500),
    "xsum": (1000, 2000),
    "samsum": (100, 300),
    "cnndm": (500, 1000),
    "wmt17": (100, 500),
    "sst2": (10, 100),
}
"""Kind of app -> least and most tokens that a call adds."""
PATTERNS = ("random", "markov", "gaussian", "turns")
HOURS = 72.0
GAP_S = 300.0
ANSWER = 16
"""Most of a call's tokens are prompt; up to so many are generated."""

Line = dict[str, float | str | int]


class Conversations:
    """What calls add to the contexts of ``n`` places, none beyond ``limit`` tokens."""

    def __init__(self, limit: int, rng: random.Random) -> None:
        self._limit, self._rng = limit, rng
        self._lengths: dict[str, int] = {}
        self._numbers: dict[str, int] = {}

    def call(self, t: float, app: str, place: str, growth: tuple[int, int]) -> Line:
        low, high = growth
        # No text is longer than half of the model's context: it would be cut before it was asked about.
        tokens = min(self._rng.randint(low, high), self._limit // 2)
        if self._lengths.get(place, 0) + tokens > self._limit:
            self._lengths[place] = 0
            self._numbers[place] = self._numbers.get(place, 0) + 1
        self._lengths[place] = self._lengths.get(place, 0) + tokens
        generate = min(ANSWER, tokens // 4)
        context = f"{place}.{self._numbers.get(place, 0)}"
        return {"t": round(t, 2), "app": app, "context": context, "prompt": tokens - generate, "generate": generate}


def make(pattern: str, n: int, *, limit: int = 4096, seed: int = 1, hours: float = HOURS) -> Iterator[Line]:
    """A trace of ``n`` contexts for a model of ``limit`` tokens."""
    rng = random.Random(f"{pattern} {n} {limit} {seed}")
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(n)]
    rng.shuffle(kinds)
    conversations = Conversations(limit, rng)
    whose = _whose(pattern, kinds, rng)
    t = rng.expovariate(1 / GAP_S)
    while t < hours * 3600:
        i = next(whose)
        yield conversations.call(t, kinds[i], f"c{i}", KINDS[kinds[i]])
        t += rng.expovariate(1 / GAP_S)


def _whose(pattern: str, kinds: list[str], rng: random.Random) -> Iterator[int]:
    n = len(kinds)
    if pattern == "turns":
        yield from itertools.cycle(range(n))
    if pattern == "markov":
        stack = list(range(n))
        weights = [1 / (rank + 1) for rank in range(n)]
        while True:
            stack.insert(0, stack.pop(rng.choices(range(n), weights)[0]))
            yield stack[0]
    weights = [1.0] * n
    if pattern == "gaussian":
        # Each context has its own mean growth, so that contexts of one kind differ.
        growth = [rng.uniform(*KINDS[kind]) for kind in kinds]
        mean = sum(growth) / n
        spread = math.sqrt(sum((g - mean) ** 2 for g in growth) / n) or 1.0
        weights = [math.exp(-(((g - mean) / spread) ** 2) / 2) for g in growth]
    elif pattern != "random":
        raise ValueError(f"a pattern is one of {', '.join(PATTERNS)}, not {pattern}")
    while True:
        yield rng.choices(range(n), weights)[0]


def main() -> None:
    try:
        pattern, n = sys.argv[1], int(sys.argv[2])
        limit = int(sys.argv[3]) if len(sys.argv) > 3 else 4096
        lines = make(pattern, n, limit=limit)
        for line in lines:
            print(json.dumps(line))
    except (IndexError, ValueError) as error:
        sys.exit(f"usage: switching.py {'|'.join(PATTERNS)} CONTEXTS [LIMIT]  ({error})")


if __name__ == "__main__":
    main()
