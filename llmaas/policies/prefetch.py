"""Predicts which context is called next, from the calls so far.

Law: pure; the work for a call grows only with the contexts that ever followed one context.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from llmaas.records import ContextId

_FORGET = 0.9
"""The counts of a context's successors are multiplied by this at each further call of the context."""


class Guess(NamedTuple):
    """A predicted context. ``confidence``: share of the times, recent ones counting more, that it came next."""

    context: ContextId
    confidence: float


class Successors:
    """A first-order Markov chain over calls whose counts fade, as app launchers use to predict the next app.

    >>> successors = Successors()
    >>> for name in ("mail", "calendar", "mail"):
    ...     successors.called(ContextId(name))
    >>> successors.guess()
    Guess(context='calendar', confidence=1.0)
    """

    def __init__(self) -> None:
        self._after: dict[ContextId, dict[ContextId, float]] = defaultdict(dict)
        """Faded counts of the contexts that were called after each context."""
        self._last: ContextId | None = None

    def called(self, context: ContextId) -> None:
        if self._last is not None and self._last != context:
            counts = self._after[self._last]
            for other in counts:
                counts[other] *= _FORGET
            counts[context] = counts.get(context, 0.0) + 1.0
        self._last = context

    def guess(self) -> Guess | None:
        """The likeliest successor of the context that was called last; None if it never had one."""
        counts = self._after.get(self._last) if self._last is not None else None
        if not counts:
            return None
        best = max(counts, key=counts.__getitem__)
        return Guess(best, counts[best] / sum(counts.values()))
