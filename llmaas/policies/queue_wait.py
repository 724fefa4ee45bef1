"""How long a call that waits behind others will wait: learned from how often calls were admitted lately.

Law: pure. What is not known is None, never a guess. A call's answer may be of any length, so that what it will take is
not known before it ends; how often a call gets its turn, while others wait, is.
"""

from __future__ import annotations

WORTH_TELLING_S = 0.2
"""A call that has waited for less did not queue: reading its text takes as long."""
_WEIGHT = 0.3
"""Of the newest figure in the running mean."""


class QueueWait:
    """A running mean of the seconds between two admissions while calls queued.

    >>> queue = QueueWait()
    >>> queue.expected_s(0, since=0.0, now=1.0) is None
    True
    >>> queue.admitted(submitted=0.0, now=4.0)
    >>> queue.expected_s(1, since=0.0, now=5.0)  # one goes before: two turns of 4 s, one second after the last
    7.0
    """

    def __init__(self) -> None:
        self._between_s: float | None = None
        self._last: float | None = None
        """When a call was admitted last."""

    def admitted(self, submitted: float, now: float) -> None:
        """A call's first admission; it came at ``submitted``."""
        if now - submitted >= WORTH_TELLING_S:
            found = now - self._since(submitted)
            self._between_s = found if self._between_s is None else _mean(self._between_s, found)
        self._last = now

    def expected_s(self, ahead: int, since: float, now: float) -> float | None:
        """Seconds until a call is admitted before which ``ahead`` others will be, where the first of all that wait has
        waited ``since`` then; None if that is not known, or is late."""
        if self._between_s is None:
            return None
        left = (ahead + 1) * self._between_s - (now - self._since(since))
        return left if left > 0 else None

    def _since(self, submitted: float) -> float:
        """Since when the next turn has been waited for, by somebody who came at ``submitted``."""
        return submitted if self._last is None else max(submitted, self._last)


def _mean(before: float, new: float) -> float:
    return (1 - _WEIGHT) * before + _WEIGHT * new
