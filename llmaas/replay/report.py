"""What a replay found: of each call, of hints, and of the whole trace.

Law: plain values, in virtual seconds and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmaas.frozen import frozen
from llmaas.planner.actions import Outcome
from llmaas.planner.tally import Tally
from llmaas.traces.call import TraceCall


@dataclass(slots=True)
class CallReport:
    """What became of a call; times are virtual seconds (None: that never came), source counts are tokens."""

    call: TraceCall
    submitted: float = 0.0
    admitted: float | None = None
    switched: float | None = None
    first_token: float | None = None
    done: float = 0.0
    sources: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Tokens that came from CELLS, POOL, DISK, and by recomputing."""
    paused: int = 0
    """How often it had to leave CELLS to others."""
    outcome: Outcome | None = None

    @property
    def switch_s(self) -> float:
        """Seconds from admission until the context was back in CELLS."""
        return 0.0 if self.admitted is None or self.switched is None else self.switched - self.admitted

    @property
    def ttft_s(self) -> float:
        """Seconds from submission to the first token, or to the end of a call that had none."""
        return (self.done if self.first_token is None else self.first_token) - self.submitted


@dataclass(slots=True)
class ReplayHints:
    """What came of bringing contexts back ahead of their calls."""

    guesses: int = 0
    right: int = 0
    """Guesses that named the next call's context."""
    tokens_moved: int = 0
    """Tokens that hints brought back to CELLS."""


@frozen
class ReplayReport:
    calls: tuple[CallReport, ...]
    tally: Tally
    hints: ReplayHints
    problems: tuple[str, ...]
    """Of the planner's books at the end; empty when they balance."""
