"""The baseline ("fifo"): first come, first served within a priority.

Law: as in ``base``.
"""

from __future__ import annotations

from llmaas.policies.scheduling.call_queues import CallQueues
from llmaas.records import RequestId

_UNLIMITED = 1 << 60


class Fifo(CallQueues):
    """A call that has been admitted stays in CELLS until it ends, and takes part in every step."""

    def __init__(self, quantum: int = 0, ageing_s: float = 0.0) -> None:
        """Both arguments are ignored; the table of policies passes them to every policy."""
        super().__init__()

    def switched_in(self, request: RequestId, seconds: float) -> None:
        pass

    def served(self, request: RequestId, began: float, now: float, steps: float, prompt: int, answer: int) -> None:
        pass

    def urgency(self, request: RequestId, now: float) -> int:
        return self._calls[request].priority

    def select(self, ready: list[RequestId], now: float) -> list[RequestId]:
        return sorted(ready, key=lambda request: self._rank(request, now))

    def outdoes(self, request: RequestId, wants: int, other: RequestId, other_wants: int, now: float) -> bool:
        return False

    def floods(self, request: RequestId, now: float) -> bool:
        return False

    def has_others(self, request: RequestId, now: float) -> bool:
        app = self._calls[request].app
        return any(call.app != app for call in self._calls.values())

    def gives_way(self, running: RequestId, waiting: RequestId, now: float) -> bool:
        return False

    def burst(self, running: RequestId) -> int:
        return _UNLIMITED

    def _rank(self, request: RequestId, now: float) -> tuple[int, int, int]:
        call = self._calls[request]
        return call.priority, 0, call.order
