"""Contexts that grow call by call, and make way for a new conversation when they are full.

Law: a context never outgrows the model; a full one is not called again.
"""

from __future__ import annotations

import random

from llmaas.traces.call import TraceCall

ANSWER = 16
"""The most tokens that a call generates; the rest of what it adds is prompt."""


class Conversations:
    """Calls of contexts that follow one another under a name, none longer than ``limit`` tokens."""

    def __init__(self, limit: int, rng: random.Random) -> None:
        self._limit, self._rng = limit, rng
        self._lengths: dict[str, int] = {}
        self._numbers: dict[str, int] = {}

    def call(self, t: float, app: str, name: str, growth: tuple[int, int]) -> TraceCall:
        """A call at ``t`` of the context that now has ``name``; it adds at least and at most ``growth`` tokens."""
        low, high = growth
        # No text is longer than half of the model's context: an app would cut it before it asks about it.
        tokens = max(1, min(self._rng.randint(low, high), self._limit // 2))
        generate = min(ANSWER, tokens // 4)
        return self.add(t, app, name, tokens - generate, generate)

    def add(self, t: float, app: str, name: str, prompt: int, generate: int) -> TraceCall:
        """The same with these numbers of tokens, which must fit in a new context."""
        if self._lengths.get(name, 0) + prompt + generate > self._limit:
            self._lengths[name] = 0
            self._numbers[name] = self._numbers.get(name, 0) + 1
        self._lengths[name] = self._lengths.get(name, 0) + prompt + generate
        context = f"{name}.{self._numbers.get(name, 0)}"
        return TraceCall(round(t, 2), app, context, prompt, generate)
