"""What a scheduling policy is asked: whose turn it is.

Law: pure; a policy sees who asks, how urgently and for how long, never a context's content. Every call is added once
and removed once, and waits or runs between. Work per question grows with the apps that wait, not with the calls.
"""

from __future__ import annotations

from typing import Protocol

from llmaas.records import AppId, RequestId


class SchedulingPolicy(Protocol):
    def add(self, request: RequestId, app: AppId, priority: int, now: float) -> None:
        """A call came; it waits. Priority 0 is the most urgent of 0 .. 9."""

    def admit(self, request: RequestId) -> None:
        """It waits no longer: its turn begins."""

    def pause(self, request: RequestId) -> None:
        """Its turn is over; it waits again."""

    def remove(self, request: RequestId) -> None:
        """It has ended."""

    def prioritize(self, request: RequestId, priority: int) -> None: ...

    def switched_in(self, request: RequestId, seconds: float) -> None:
        """Its context is in CELLS again, which took so long."""

    def served(self, request: RequestId, began: float, now: float, steps: float, prompt: int, answer: int) -> None:
        """It took part in a step from ``began`` to ``now``, worth so many decode steps, with so many tokens.

        Computing again what was there before is worth nothing.
        """

    def head(self, now: float) -> RequestId | None:
        """Who is to be admitted next, or None if nobody waits."""

    def urgency(self, request: RequestId, now: float) -> int:
        """The call's priority, or a smaller number if it has not been served for long."""

    def select(self, ready: list[RequestId], now: float) -> list[RequestId]:
        """Who takes part in the next step, of those that could; whoever's prompt comes first, first. Some, if any."""

    def gives_way(self, running: RequestId, waiting: RequestId, now: float) -> bool:
        """Whether a running call must leave its place to a waiting one that needs it."""

    def burst(self, running: RequestId) -> int:
        """Steps that the call may still take until others may ask for its place."""

    def __len__(self) -> int:
        """How many wait."""
