"""Which context will be called next, as far as the past tells.

Law: pure; constant work per call.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from llmaas.records import ContextId

_FORGET = 0.9
"""What an earlier successor counts after one more call of the same context."""


class Guess(NamedTuple):
    context: ContextId
    confidence: float
    """Share of the times, recent ones counting more, that this one came next."""


class Successors:
    """Who was called after whom: a first-order Markov chain whose counts fade (as app launchers predict)."""

    def __init__(self) -> None:
        self._after: dict[ContextId, dict[ContextId, float]] = defaultdict(dict)
        self._last: ContextId | None = None

    def called(self, context: ContextId) -> None:
        if self._last is not None and self._last != context:
            counts = self._after[self._last]
            for other in counts:
                counts[other] *= _FORGET
            counts[context] = counts.get(context, 0.0) + 1.0
        self._last = context

    def guess(self) -> Guess | None:
        """Who comes after the context that was called last, if that is known at all."""
        counts = self._after.get(self._last) if self._last is not None else None
        if not counts:
            return None
        best = max(counts, key=counts.__getitem__)
        return Guess(best, counts[best] / sum(counts.values()))
