"""Every generator by the name that the command line gives it.

Law: the same pattern, sizes and seed make the same trace.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmaas.traces import bursts, evening, phone, switching
from llmaas.traces.call import TraceCall

ABOUT = {
    "random": "any context (LLMS)",
    "markov": "recently used contexts more often (LLMS)",
    "gaussian": "contexts of middling growth more often (LLMS)",
    "turns": "one context after the other: the worst case for LRU",
    "phone": "a semi-synthetic phone: real gaps between unlocks and real depths of switching, as aggregates",
    "bursts": "recently used contexts more often, all at once and then for a while not at all",
    "evening": "a small sample: four apps of one evening, in bursts",
}
"""Generators and what they call next."""


def generate(pattern: str, *, contexts: int, limit: int, seed: int, hours: float) -> Iterator[TraceCall]:
    """A trace of the generator ``pattern``, one of ABOUT. ``contexts`` is for ``bursts`` and LLMS' patterns;
    ``evening`` takes no ``hours``.
    """
    match pattern:
        case "phone":
            return phone.make(seed, limit=limit, hours=hours)
        case "bursts":
            return bursts.make(contexts, limit=limit, seed=seed, hours=hours)
        case "evening":
            return evening.make(seed, limit=limit)
        case "random" | "markov" | "gaussian" | "turns":
            return switching.make(pattern, contexts, limit=limit, seed=seed, hours=hours)
        case _:
            raise ValueError(f"no generator is called {pattern}")
