"""Who is hinted at in a replay, and how often that was right.

Law: it only looks at the calls so far; how a hint is carried out is for the simulator.
"""

from __future__ import annotations

from llmaas.policies.prefetch import Successors
from llmaas.records import ContextId
from llmaas.replay.report import ReplayHints


class Hinting:
    """``guess_from``: a guess must have at least this confidence; None: there are no guesses."""

    def __init__(self, guess_from: float | None) -> None:
        self._guess_from = guess_from
        self._successors = Successors()
        self._guessed: ContextId | None = None
        self.counts = ReplayHints()

    def called(self, context: ContextId) -> None:
        """A call of this context has come."""
        self.counts.right += self._guessed == context
        self._guessed = None
        self._successors.called(context)

    def guess(self) -> ContextId | None:
        """Whom to bring back after a call; None if nobody is likely enough."""
        guess = self._successors.guess()
        if self._guess_from is None or guess is None or guess.confidence < self._guess_from:
            return None
        self._guessed = guess.context
        self.counts.guesses += 1
        return guess.context
