"""What the rows of runs come to: times, their spread over repeats, and what the program took.

Law: pure; milliseconds, tokens and bytes as named. Calls that begin a context are not counted: nobody switches there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from bench.lib.stats import sig
from bench.replaying.journal import Row

TIERS = ("cells", "pool", "disk", "recomputed")
_PERCENTILES = 50, 90, 99


def times(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, percentiles and maximum; None if there is no value."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    shown = {f"p{p}": sig(float(np.percentile(found, p))) for p in _PERCENTILES}
    return {"mean": sig(statistics.fmean(found)), **shown, "max": sig(max(found)), "n": len(found)}


def tier(row: Row) -> str | None:
    """Where most of the context's tokens were; None if the program does not say."""
    sources: Mapping[str, int] | None = row.get("sources")
    if not sources or not sum(sources.values()):
        return None
    return max(TIERS, key=lambda name: sources[name])


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of one run."""
    calls = [row for row in rows if row["row"] == "call" and not row["begins"] and row["n_new"]]
    switched = [row for row in calls if row["switches"]]
    restarted = [row for row in rows if row["row"] == "restart"]
    end = next((row for row in rows if row["row"] == "end"), {})
    tiers: dict[str, list[Row]] = {}
    for row in switched:
        if (place := tier(row)) is not None:
            tiers.setdefault(place, []).append(row)
    return {
        "calls": len(calls),
        "failed": sum(row["row"] == "failed" for row in rows),
        "why": next((row.get("why") for row in rows if row["row"] == "failed"), None),
        "ttft_ms": times(row["ttft_ms"] for row in switched),
        "ttft_same_ms": times(row["ttft_ms"] for row in calls if not row["switches"]),
        "ttft_restart_ms": times(row["ttft_ms"] for row in restarted),
        "prefill_restart_ms": times(row.get("prefill_ms") for row in restarted),
        "switch_ms": times(row.get("switch_ms") for row in switched),
        "prefill_ms": times(row.get("prefill_ms") for row in switched),
        "between_ms": times(row.get("between_ms") for row in calls),
        **stream_figures(rows),
        "tiers": {
            place: {
                "switch_ms": times(row["switch_ms"] for row in tiers[place]),
                "ttft_ms": times(row["ttft_ms"] for row in tiers[place]),
            }
            for place in TIERS
            if place in tiers
        },
        "tokens_computed": sum(row.get("n_computed") or 0 for row in calls),
        "seconds": end.get("seconds"),
        "took": end.get("calls"),
        "took_whole": end.get("whole"),
        "others_cpu": end.get("others_cpu"),
        "peak_resident": end.get("peak_resident"),
        "peak_anonymous": end.get("peak_anonymous"),
    }


def stream_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Of an answer that was streamed while other contexts were called: milliseconds between its tokens, while one of
    these was brought back and prefilled (``during``), and else (``alone``); and how long those waited."""
    beside = [row for row in rows if row["row"] == "beside"]
    stream = next((row for row in rows if row["row"] == "stream"), None)
    if stream is None:
        return {"stream_ms": None, "ttft_beside_ms": None}
    waits = [(row["began_us"], row["began_us"] + 1e3 * row["ttft_ms"]) for row in beside]
    during: list[float] = []
    alone: list[float] = []
    for a, b in pairwise(stream["arrivals_us"]):
        others = any(begin < b and a < end for begin, end in waits)
        (during if others else alone).append((b - a) / 1e3)
    return {
        "stream_ms": {"during": times(during), "alone": times(alone), "tokens": len(stream["arrivals_us"])},
        "ttft_beside_ms": times(row["ttft_ms"] for row in beside),
    }


def same_answers(rows: Sequence[Row], reference: Sequence[Row]) -> float | None:
    """The part of the answers that are token for token those of another run of the same calls."""
    answers = {row["number"]: row["tokens"] for row in reference if row["row"] == "call" and row["tokens"]}
    mine = [row for row in rows if row["row"] == "call" and row["tokens"] and row["number"] in answers]
    if not mine:
        return None
    return sig(sum(row["tokens"] == answers[row["number"]] for row in mine) / len(mine))


def value(found: Mapping[str, Any], path: str) -> float | None:
    """A figure of a summary by its path, as "ttft_ms.p50"."""
    at: Any = found
    for name in path.split("."):
        at = at.get(name) if isinstance(at, Mapping) else None
    return at if isinstance(at, (int, float)) else None


def over_repeats(summaries: Sequence[Mapping[str, Any]], path: str) -> tuple[float, float] | None:
    """The median of a figure over repeats, and the distance from its least to its greatest value."""
    values = [found for each in summaries if (found := value(each, path)) is not None]
    return (statistics.median(values), max(values) - min(values)) if values else None


def ratio(
    theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]], path: str, our_path: str = ""
) -> float | None:
    """How many times as much theirs is, by the medians over repeats. ``our_path``: of ours, if it is another figure."""
    a, b = over_repeats(theirs, path), over_repeats(ours, our_path or path)
    return sig(a[0] / b[0]) if a is not None and b is not None and b[0] else None
