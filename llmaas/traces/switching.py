"""Makes traces as LLMS describes its own (arXiv 2403.11805, section 4.1): 72 hours, a call in five minutes, 2 .. 64
contexts.

Law: the seed decides all. The paper describes its traces and does not publish them; what it leaves open is decided
here, and said below.

Calls are a Poisson process. Each context belongs to one of six kinds of app, named after the paper's data sets, and
grows with each call by the length of that data set's texts. The context of the next call is, by pattern:

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
import math
import random
from collections.abc import Iterator

from llmaas.traces.call import TraceCall
from llmaas.traces.growth import Conversations

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


def make(pattern: str, n: int, *, limit: int = 4096, seed: int = 1, hours: float = HOURS) -> Iterator[TraceCall]:
    """A trace of ``n`` contexts for a model of ``limit`` tokens."""
    rng = random.Random(f"{pattern} {n} {limit} {seed}")
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(n)]
    rng.shuffle(kinds)
    conversations = Conversations(limit, rng)
    t = rng.expovariate(1 / GAP_S)
    # Each context has its own mean growth, so that contexts of one kind differ.
    growth = [rng.uniform(*KINDS[kind]) for kind in kinds] if pattern == "gaussian" else []
    order = called(pattern, n, rng, growth)
    while t < hours * 3600:
        i = next(order)
        yield conversations.call(t, kinds[i], f"c{i}", KINDS[kinds[i]])
        t += rng.expovariate(1 / GAP_S)


def called(pattern: str, n: int, rng: random.Random, growth: list[float] | None = None) -> Iterator[int]:
    """The context of each call, by number, without end. ``growth``: tokens a call adds to each context, for
    ``gaussian``. Raises ValueError for an unknown pattern.
    """
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
        assert growth
        mean = sum(growth) / n
        spread = math.sqrt(sum((g - mean) ** 2 for g in growth) / n) or 1.0
        weights = [math.exp(-(((g - mean) / spread) ** 2) / 2) for g in growth]
    elif pattern != "random":
        raise ValueError(f"a pattern is one of {', '.join(PATTERNS)}, not {pattern}")
    while True:
        yield rng.choices(range(n), weights)[0]
