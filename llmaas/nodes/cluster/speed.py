"""How fast a node has been seen to be, from the calls that its daemon reports.

Law: pure. A call is counted once, when it has ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmaas.policies.linear_cost import LinearCost
from llmaas.records import RequestInfo

_NEW = 0.3
"""Weight of the newest of what was seen."""
_LEAST_TOKENS = 16
"""Of a prompt that says something about how fast prompts are computed."""


class NodeSpeed:
    """Of one daemon.

    >>> NodeSpeed().queue_s(3)
    0.0
    """

    def __init__(self) -> None:
        self._prefill = self._run_s = 0.0
        self._read = LinearCost(1e-3, 1e-9)
        self._last = 0
        """All calls up to this number were counted."""
        self._counted = set[int]()
        """Of later ones those that were."""

    @property
    def last(self) -> int:
        return self._last

    @property
    def prefill_rate(self) -> float:
        """Tokens of a prompt a second; 0.0 before there was one."""
        return self._prefill

    @property
    def read(self) -> LinearCost:
        """Seconds of (reads, bytes) from POOL and DISK."""
        return self._read

    def queue_s(self, n_waiting: int) -> float:
        """Seconds until a new call has its turn: those that wait have theirs before, one after the other. Where none
        waits it begins at once, since a daemon runs some calls together."""
        return self._run_s * n_waiting

    def observe(self, calls: Iterable[RequestInfo], token_bytes: float) -> None:
        """Calls in the order of their numbers; ``token_bytes``: of a token in coded chunks."""
        all_ended = True
        for call in calls:
            has_ended = call.state == "ended"
            all_ended = all_ended and has_ended
            if has_ended and call.call > self._last and call.call not in self._counted:
                self._count(call, token_bytes)
                self._counted.add(call.call)
            if all_ended:
                self._last = max(self._last, call.call)
        self._counted = {number for number in self._counted if number > self._last}

    def _count(self, call: RequestInfo, token_bytes: float) -> None:
        computed_s = n_computed = busy_s = 0.0
        for span in call.spans:
            if span.end_ms is None:
                continue
            seconds = (span.end_ms - span.start_ms) / 1000
            if span.name in ("prefill", "recompute"):
                computed_s, n_computed = computed_s + seconds, n_computed + span.tokens
            elif span.name in ("pool", "disk"):
                self._read.observe(1.0, span.tokens * token_bytes, seconds)
            if span.name != "queued":
                busy_s = max(busy_s, span.end_ms / 1000)
        queued = next((span for span in call.spans if span.name == "queued" and span.end_ms is not None), None)
        if queued is not None and queued.end_ms is not None:
            busy_s -= queued.end_ms / 1000
        if n_computed >= _LEAST_TOKENS and computed_s > 0:
            self._prefill = _mixed(self._prefill, n_computed / computed_s)
        if busy_s > 0:
            self._run_s = _mixed(self._run_s, busy_s)


def _mixed(before: float, new: float) -> float:
    return new if before == 0 else (1 - _NEW) * before + _NEW * new
