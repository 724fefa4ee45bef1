"""What every scheduling policy offers: it says which call is admitted, runs in the next step, or makes room.

Law: pure. A policy sees which app calls, how urgently and for how long, never a context's content. Every call is added
once and removed once; in between it waits or runs. The work for a question grows with the apps that wait, not with
their calls.

A call runs while its context is in CELLS. The time from ``admit`` to ``pause`` is a running period. Steps count in
decode steps: one step of an answer is worth 1. Priorities go from 0 (most urgent) to 9, times are in seconds.
"""

from __future__ import annotations

from typing import Protocol

from llmaas.records import AppId, RequestId


class SchedulingPolicy(Protocol):
    def add(self, request: RequestId, app: AppId, priority: int, now: float) -> None:
        """A call came; it waits."""

    def admit(self, request: RequestId) -> None:
        """A waiting call begins a running period."""

    def pause(self, request: RequestId) -> None:
        """A running call waits again."""

    def remove(self, request: RequestId) -> None:
        """The call has ended."""

    def prioritize(self, request: RequestId, priority: int) -> None:
        """The call has another priority from now on."""

    def switched_in(self, request: RequestId, seconds: float) -> None:
        """Bringing the call's context back into CELLS took ``seconds`` of this running period."""

    def served(self, request: RequestId, began: float, now: float, steps: float, prompt: int, answer: int) -> None:
        """The call took part in an engine step from ``began`` to ``now``.

        ``steps`` is what the step was worth to it, ``prompt`` and ``answer`` the tokens that it read and generated.
        Tokens that were only recomputed count as nothing.
        """

    def head(self, now: float) -> RequestId | None:
        """The call to admit next; None if none waits."""

    def urgency(self, request: RequestId, now: float) -> int:
        """The call's priority, made more urgent (smaller) if it was not served for long."""

    def select(self, ready: list[RequestId], now: float) -> list[RequestId]:
        """The calls that take part in the next step, out of those that could; not empty unless ``ready`` is.

        The order is that in which their prompts are read.
        """

    def outdoes(self, request: RequestId, wants: int, other: RequestId, other_wants: int, now: float) -> bool:
        """Whether the app of ``request``, which wants so many tokens more now, takes so much more than the other
        call's that its prompts wait for the other's."""

    def floods(self, request: RequestId, now: float) -> bool:
        """Whether the app of ``request`` was served far more lately than one that has no calls now, but was served not
        long ago, so that it may soon have one."""

    def has_others(self, request: RequestId, now: float) -> bool:
        """Whether another app has calls, or may soon have one."""

    def gives_way(self, running: RequestId, waiting: RequestId, now: float) -> bool:
        """Whether a running call must be paused for a waiting one that needs its room."""

    def burst(self, running: RequestId) -> int:
        """Steps that the call may take, at least 1, before waiting calls may ask for its room."""

    def __len__(self) -> int:
        """How many calls wait."""
