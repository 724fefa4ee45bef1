"""Makes traces as LLMS describes its own (arXiv 2403.11805, section 4.1): 72 hours, a call in five minutes, 2 .. 64
contexts.

python traces/switching.py random 16 > trace.jsonl

The paper describes its traces and does not publish them; what it leaves open is decided here, and said below. Calls
are a Poisson process. Each context belongs to one of six kinds of app, named after the paper's data sets, and grows
with each call by the length of that data set's texts. The context of the next call is, by pattern:

* ``random``: any context;
* ``markov``: one used recently; rank r of the least-recently-used stack with a chance that falls as 1 / (r + 1)
  (our reading of "recent favoured");
* ``gaussian``: one drawn by popularity, a normal density of the context's growth per call around the mean of all
  (our reading of "Gaussian over delta length");
* ``turns``: the next one, cyclically. This is not in the paper: it is the worst case for least recently used.

A context never outgrows the model: when it is full, a new conversation replaces it, and the old one is not called
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
"""The least and the most tokens that a call adds, by kind of app."""
PATTERNS = ("random", "markov", "gaussian", "turns")
HOURS = 72.0
GAP_S = 300.0
ANSWER = 16
"""The most tokens that a call generates; the rest of what it adds is prompt."""

Line = dict[str, float | str | int]


class Conversations:
    """Calls of contexts that follow one another under a name, none longer than ``limit`` tokens."""

    def __init__(self, limit: int, rng: random.Random) -> None:
        self._limit, self._rng = limit, rng
        self._lengths: dict[str, int] = {}
        self._numbers: dict[str, int] = {}

    def call(self, t: float, app: str, name: str, growth: tuple[int, int]) -> Line:
        """A call at ``t`` of the context that now has ``name``; it adds at least and at most ``growth`` tokens."""
        low, high = growth
        # No text is longer than half of the model's context: an app would cut it before it asks about it.
        tokens = min(self._rng.randint(low, high), self._limit // 2)
        if self._lengths.get(name, 0) + tokens > self._limit:
            self._lengths[name] = 0
            self._numbers[name] = self._numbers.get(name, 0) + 1
        self._lengths[name] = self._lengths.get(name, 0) + tokens
        generate = min(ANSWER, tokens // 4)
        context = f"{name}.{self._numbers.get(name, 0)}"
        return {"t": round(t, 2), "app": app, "context": context, "prompt": tokens - generate, "generate": generate}


def make(pattern: str, n: int, *, limit: int = 4096, seed: int = 1, hours: float = HOURS) -> Iterator[Line]:
    """A trace of ``n`` contexts for a model of ``limit`` tokens."""
    rng = random.Random(f"{pattern} {n} {limit} {seed}")
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(n)]
    rng.shuffle(kinds)
    conversations = Conversations(limit, rng)
    called = _called(pattern, kinds, rng)
    t = rng.expovariate(1 / GAP_S)
    while t < hours * 3600:
        i = next(called)
        yield conversations.call(t, kinds[i], f"c{i}", KINDS[kinds[i]])
        t += rng.expovariate(1 / GAP_S)


def _called(pattern: str, kinds: list[str], rng: random.Random) -> Iterator[int]:
    """The context of each call, by number. Raises ValueError for an unknown pattern."""
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
