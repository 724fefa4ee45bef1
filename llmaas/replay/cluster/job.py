"""One call on its way through a cluster, and what became of it.

Law: plain values, in virtual seconds, tokens and bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmaas.frozen import frozen
from llmaas.policies.placement import ContextPlan
from llmaas.replay.cluster.workload import ClusterCall, ClusterContext


@dataclass(slots=True, eq=False)
class ClusterJob:
    """``guest_of``: this is no call of its own, but the place that is made ready for one that is to move here."""

    number: int
    call: ClusterCall
    context: ClusterContext
    submitted: float
    guest_of: ClusterJob | None = None
    plan: ContextPlan = field(default_factory=ContextPlan)
    ready: float | None = None
    """When the engine began with what is new of it, the first time: it had its turn, its model and its context."""
    started: float | None = None
    """When its first token was there, the first time."""
    done: float | None = None
    shared: int = 0
    """Tokens of its prompt that other contexts begin with, too, and have."""
    left: int = 0
    """Tokens of the answer that are still to come, from ``decodes_from`` on at ``token_s`` each."""
    decodes_from: float = 0.0
    token_s: float = 0.0
    run: int = 0
    """Raised whenever it leaves a node, so that what was foreseen there does not happen."""
    moved: int = 0
    preempted: int = 0

    def tokens_at(self, now: float) -> int:
        """What the context has, with what is there of the answer."""
        return self.context.tokens + self.call.prompt + self.call.generate - self.left_at(now)

    def left_at(self, now: float) -> int:
        """Tokens of the answer that are still to come."""
        made = 0 if now <= self.decodes_from else int((now - self.decodes_from) / self.token_s)
        return max(1, self.left - made)

    @property
    def start_s(self) -> float:
        """Start-up: from the call until the engine begins with what is new."""
        return 0.0 if self.ready is None else self.ready - self.submitted

    @property
    def first_s(self) -> float:
        """From the call to its first token."""
        return 0.0 if self.started is None else self.started - self.submitted

    @property
    def total_s(self) -> float:
        return 0.0 if self.done is None else self.done - self.submitted


@dataclass(slots=True)
class ClusterTally:
    """What was moved, and what was done twice."""

    refused: int = 0
    loads: int = 0
    load_bytes: int = 0
    contexts_moved: int = 0
    context_bytes: int = 0
    """Coded chunks and tokens that went over links."""
    read_bytes: int = 0
    recomputed: int = 0
    """Tokens that contexts had already."""
    calls_moved: int = 0
    preemptions: int = 0


@frozen
class ClusterReport:
    """Of a replay."""

    jobs: tuple[ClusterJob, ...]
    tally: ClusterTally
