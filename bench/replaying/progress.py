"""How far a replay has come, and how long it will take, on stderr.

Law: prints at most once in five seconds, on a line of its own, so that logs can be read.
"""

from __future__ import annotations

import sys
import time

_EVERY_S = 5.0


class Progress:
    """Of ``total`` calls in all runs together."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._begin = self._said = time.monotonic()
        self.what = ""

    def skip(self, calls: int) -> None:
        """So many calls need not be made: they were made before."""
        self._total -= calls

    def advance(self, calls: int) -> None:
        self._done += calls
        now = time.monotonic()
        if now - self._said < _EVERY_S:
            return
        self._said = now
        left = (now - self._begin) / self._done * max(0, self._total - self._done)
        print(
            f"{self.what}: call {self._done} of {self._total}, about {_shown(left)} left", file=sys.stderr, flush=True
        )


def _shown(seconds: float) -> str:
    """Roughly, in words.

    >>> _shown(40.0), _shown(200.0)
    ('40 s', '3 min')
    """
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
