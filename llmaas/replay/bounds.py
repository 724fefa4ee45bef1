"""Replays that no eviction policy can do better than: what policies are compared with.

Law: everything but the bound itself is as in any other replay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llmaas.planner.settings import PlannerSettings
from llmaas.policies.eviction.belady import Belady
from llmaas.records import ContextId
from llmaas.replay.contexts import context_id
from llmaas.replay.prices import Costs
from llmaas.replay.report import ReplayReport
from llmaas.replay.simulator import Replay
from llmaas.traces.call import TraceCall


def unbounded(trace: Sequence[TraceCall], settings: PlannerSettings, costs: Costs | None = None) -> ReplayReport:
    """The trace with a POOL that holds everything: no eviction policy gives shorter switches."""
    return Replay(dataclasses.replace(settings, pool_bytes=1 << 60), costs).run(trace)


def belady(trace: Sequence[TraceCall], settings: PlannerSettings, costs: Costs | None = None) -> ReplayReport:
    """The trace with an eviction policy that knows it: no other gives fewer tokens from DISK (``eviction.belady``)."""
    returns: dict[ContextId, list[float]] = {}
    for report in unbounded(trace, settings, costs).calls:
        if sum(report.sources[1:]) and report.admitted is not None:
            returns.setdefault(context_id(report.call), []).append(report.admitted)
    return Replay(settings, costs, eviction=Belady(returns)).run(trace)
