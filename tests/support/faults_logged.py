"""What this process logs as its own fault, for runs after which there must be none."""

from __future__ import annotations

import logging


class FaultsLogged(logging.Handler):
    """Errors and worse, formatted, in ``said``."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))
