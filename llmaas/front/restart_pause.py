"""How long a model's process that ended by itself stays away before it is started again.

Law: pure; seconds. A process that worked, and ended for the first time in a while, is started at once.
"""

from __future__ import annotations

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_STEADY_S, _STEADY_LOADS = 2.0, 2.0
"""A process works if it has been there for so long, and for so many times what its start took. So a process that ends
again and again, as by a prompt that kills it, spends a third of the time on starting at most, or the pauses grow."""


class RestartPause:
    """The pauses of one model.

    >>> pauses = RestartPause()
    >>> [pauses.after_end(1.0, worked_s) for worked_s in (0.1, 0.1, 0.1, 9.0, 9.0)]
    [0.0, 1.0, 2.0, 0.0, 0.0]
    """

    def __init__(self) -> None:
        self._next = FIRST_PAUSE_S

    def after_end(self, load_s: float | None, worked_s: float) -> float:
        """Seconds until the next start. ``load_s``: what the last start took, None if it did not succeed;
        ``worked_s``: how long the process was there after it."""
        if load_s is not None and worked_s > max(_STEADY_S, _STEADY_LOADS * load_s):
            self._next = FIRST_PAUSE_S
        pause = 0.0 if load_s is not None and self._next == FIRST_PAUSE_S else self._next
        self._next = min(2 * self._next, LONGEST_PAUSE_S)
        return pause
