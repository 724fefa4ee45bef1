"""The baseline: first come, first served.

Law: as in ``base``.
"""

from __future__ import annotations

import math

from llmaas.policies.scheduling.fair import Fair
from llmaas.records import RequestId


class Fifo(Fair):
    """The baseline: first come, first served within a priority; whoever is in CELLS stays there, and in every step."""

    def __init__(self, quantum: int = 0, ageing_s: float = 0.0) -> None:
        super().__init__(1 << 60, math.inf)

    def _rank(self, request: RequestId, now: float) -> tuple[int, int, int]:
        call = self._calls[request]
        return call.priority, 0, call.order

    def select(self, ready: list[RequestId], now: float) -> list[RequestId]:
        return sorted(ready, key=lambda request: self._rank(request, now))

    def gives_way(self, running: RequestId, waiting: RequestId, now: float) -> bool:
        return False
