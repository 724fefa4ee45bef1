"""Where the time goes in which an answer stands still because its context moves.

Law: values only; the clock is given.
"""

from __future__ import annotations

from llmaas.clock import Clock


class Pause:
    """Begins when the answer is told to stop. ``mark`` says what has been done since the last mark."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock.now()
        self._parts: list[tuple[str, float]] = []

    def mark(self, what: str) -> None:
        before, self._last = self._last, self._clock.now()
        self._parts.append((what, self._last - before))

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self._parts)

    def __str__(self) -> str:
        parts = ", ".join(f"{what} {1e3 * seconds:.0f}" for what, seconds in self._parts)
        return f"{1e3 * self.seconds:.0f} ms ({parts})"
