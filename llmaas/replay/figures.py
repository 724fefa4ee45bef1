"""What the replay of a trace comes to, in numbers.

Law: pure; milliseconds of virtual time, tokens, chunks and bytes as named.
"""

from __future__ import annotations

import dataclasses
import statistics

from llmaas.replay.report import ReplayReport


def figures(report: ReplayReport) -> dict[str, object]:
    """Times of switches and of first tokens, and the planner's counts."""
    switches = sorted(c.switch_s * 1e3 for c in report.calls if sum(c.sources))
    first = sorted(c.ttft_s * 1e3 for c in report.calls if c.call.generate)
    return {
        "calls": len(report.calls),
        "switches": len(switches),
        "switch_ms_mean": statistics.fmean(switches) if switches else 0.0,
        "switch_ms_p50": _quantile(switches, 50),
        "switch_ms_p99": _quantile(switches, 99),
        "ttft_ms_p50": _quantile(first, 50),
        "ttft_ms_p99": _quantile(first, 99),
        **_by_priority(report),
        **dataclasses.asdict(report.tally),
    }


def _by_priority(report: ReplayReport) -> dict[str, float]:
    """Times to the first token, where a trace has more than one priority."""
    first: dict[int, list[float]] = {}
    for c in report.calls:
        if c.call.generate:
            first.setdefault(c.call.priority, []).append(c.ttft_s * 1e3)
    if len(first) < 2:
        return {}
    shares = [(f"ttft_ms_priority_{p}_p{q}", _quantile(sorted(first[p]), q)) for p in sorted(first) for q in (50, 99)]
    return dict(shares)


def _quantile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
