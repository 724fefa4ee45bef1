"""What ``llmaas top`` has learned of the daemon: figures, contexts and calls.

Law: asks no more than a small share of the daemon's time: the longer the list of contexts is, the rarer it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmaas.api.model_list import ListedModel
from llmaas.records import ContextInfo, RequestInfo

_SHARE = 20.0
"""The list of contexts is read again after so many times as long as reading it took."""
_KEPT = 64
"""Calls that have ended and are still shown."""


class WatchedDaemon(Protocol):
    """The client, as far as it is needed."""

    def stats(self) -> dict[str, Any]: ...

    def contexts(self, everyone: bool = False) -> list[ContextInfo]: ...

    def requests(self, everyone: bool = False, *, after: int = 0) -> list[RequestInfo]: ...


@dataclass(slots=True)
class Sample:
    """The daemon as it was when it was asked last. Times are seconds of the caller's clock."""

    stats: Mapping[str, Any] = field(default_factory=dict)
    contexts: list[ContextInfo] = field(default_factory=list)
    running: list[RequestInfo] = field(default_factory=list)
    """Calls that wait or run, in the order in which they came."""
    ended: list[RequestInfo] = field(default_factory=list)
    """The last ones that have ended, latest first."""
    models: list[ListedModel] = field(default_factory=list)
    """Of a daemon that serves several."""
    served_as: str = ""
    """That of these which the rest is about."""
    tokens_per_s: float = 0.0
    """Tokens that all apps were given since the sample before."""
    _at: float | None = None
    _contexts_due: float = 0.0
    _seen: int = 0
    """All calls up to this number have ended and are known."""

    def read(self, daemon: WatchedDaemon, clock: Callable[[], float]) -> None:
        """Ask the daemon. Raises what the client raises."""
        now = clock()
        generated = self._count("tokens_generated")
        self.stats = daemon.stats()
        if self._at is not None and now > self._at:
            self.tokens_per_s = max(0, self._count("tokens_generated") - generated) / (now - self._at)
        self._at = now
        calls = daemon.requests(everyone=True, after=self._seen)
        self.running = [call for call in calls if call.state != "ended"]
        self._add_ended([call for call in calls if call.state == "ended"])
        self._read_contexts(daemon, clock)

    def _add_ended(self, calls: list[RequestInfo]) -> None:
        known = {call.call for call in self.ended}
        new = [call for call in calls if call.call not in known]
        self.ended = sorted([*new, *self.ended], key=_ended_at, reverse=True)[:_KEPT]
        oldest = min((call.call for call in self.running), default=None)
        last = max((call.call for call in calls), default=self._seen)
        self._seen = max(self._seen, last if oldest is None else oldest - 1)

    def _read_contexts(self, daemon: WatchedDaemon, clock: Callable[[], float]) -> None:
        """Read the list of contexts, if it is due."""
        began = clock()
        if began >= self._contexts_due:
            self.contexts = daemon.contexts(everyone=True)
            took = clock() - began
            self._contexts_due = clock() + _SHARE * took

    def _count(self, name: str) -> int:
        return int(self.stats.get("counts", {}).get(name, 0))


def _ended_at(call: RequestInfo) -> float:
    """When the call ended, by the wall clock."""
    return call.submitted + max((span.end_ms or 0.0 for span in call.spans), default=0.0) / 1e3
