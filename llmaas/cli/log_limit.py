"""A log that repeated messages cannot fill.

Law: the first messages of each kind are always logged; those that are left out are counted, and the next one that is
logged says how many they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from llmaas.clock import RealClock

BURST = 10
"""Messages of one kind that are logged in one window."""
WINDOW_S = 10.0


@dataclass(slots=True)
class _Window:
    began: float
    logged: int = 0
    left_out: int = 0


class RateLimitedLog(logging.Filter):
    """A handler's filter. Messages are of one kind if one line of code logs them, for one class of exception.

    A message of DEBUG level is never left out: who asks for these wants all.
    """

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        super().__init__()
        self._now = now or RealClock().now
        self._windows: dict[tuple[str, int, type[BaseException] | None], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        kind = (record.pathname, record.lineno, record.exc_info[0] if record.exc_info else None)
        now = self._now()
        window = self._windows.get(kind)
        if window is None or now - window.began >= WINDOW_S:
            left_out = window.left_out if window else 0
            window = self._windows[kind] = _Window(now)
            if left_out:
                record.msg, record.args = f"{record.getMessage()} (and {left_out} more like it before)", None
        if window.logged >= BURST:
            window.left_out += 1
            return False
        window.logged += 1
        return True
