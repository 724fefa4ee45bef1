"""What the replay of a cluster comes to, in numbers.

Law: pure; seconds of virtual time, tokens and bytes as named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llmaas.replay.cluster.job import ClusterReport


def cluster_figures(report: ClusterReport) -> dict[str, object]:
    """``start_s``: start-up, from the call until the engine begins with its new tokens: its turn, its model and its
    context are there. ``first_s``: to its first token. ``total_s``: to its last.
    """
    served = [job for job in report.jobs if job.done is not None]
    starts, firsts = sorted(job.start_s for job in served), sorted(job.first_s for job in served)
    totals = sorted(job.total_s for job in served)
    return {
        "calls": len(report.jobs),
        "served": len(served),
        "start_s_mean": sum(starts) / max(1, len(starts)),
        "start_s_p50": quantile(starts, 50),
        "start_s_p99": quantile(starts, 99),
        "first_s_p50": quantile(firsts, 50),
        "first_s_p99": quantile(firsts, 99),
        "total_s_p50": quantile(totals, 50),
        "total_s_p99": quantile(totals, 99),
        **dataclasses.asdict(report.tally),
    }


def quantile(ordered: Sequence[float], percent: int) -> float:
    """The least that so many percent are no more than; 0 of none."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0.0
