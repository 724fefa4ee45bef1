"""Sections of what is replayed in virtual time: eviction, placement, and predictions against what then happened.

Law: as the benches' lines say; relative figures are relative to LRU in the same places.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from bench.reporting.markdown import Line, about, command, of_bench, prose, table

_PATTERNS = ("all", "random", "markov", "gaussian", "turns", "phone")


def eviction(lines: Iterable[Line]) -> Iterator[str]:
    for line in of_bench(lines, "policies"):
        if "slow_summary" in line["figures"]:
            yield from _eviction(line, line["figures"])


def _eviction(line: Line, figures: dict[str, Any]) -> Iterator[str]:
    slow = [row for row in figures["slow"] if row["disk_over_pool"] > 2]
    summary, n = figures["slow_summary"], len(slow) // len(figures["slow_summary"])
    ratios = sorted({row["disk_over_pool"] for row in slow})
    yield "## Eviction where DISK costs more than twice POOL"
    yield prose(
        f"Mean switch over that of `lru`, geometric mean over {n} places (patterns, numbers of contexts, sizes of the "
        f"POOL, and devices on which DISK costs {ratios[0]:.3g} to {ratios[-1]:.3g} times POOL). `belady` knows the "
        "future: no policy has fewer tokens from DISK. " + about(line, timed=False)
    )
    yield command(line["command"])
    for what, key in (("mean switch", "mean"), ("tokens from DISK", "disk")):
        rows = [[name, *(found.get(f"{key}_{p}") for p in _PATTERNS)] for name, found in summary.items()]
        yield table([what, *_PATTERNS], rows)


_PLACED = {
    "start_s_p50": "p50", "start_s_p99": "p99", "first_s_p99": "first", "total_s_p99": "last", "loads": "loads",
    "load_bytes": "TB", "context_bytes": "GB", "recomputed": "again", "calls_moved": "moved", "preemptions": "stopped",
}  # fmt: skip
_UNITS = {"load_bytes": 1e12, "context_bytes": 1e9}


def placement(lines: Iterable[Line]) -> Iterator[str]:
    for line in of_bench(lines, "cluster"):
        yield "## Calls placed on a cluster"
        yield prose(
            "Traces in virtual time; [cluster.md](cluster.md#replay-of-a-cluster) says what is made up. Seconds: "
            "p50 and p99 of start-up, until the node begins with what is new of a call; p99 of the first and the last "
            "token. TB of models loaded, GB of contexts moved, tokens computed again, calls moved and stopped. "
            + about(line)
        )
        yield command(line["command"])
        for scene, rows in itertools.groupby(line["figures"]["scenes"], key=lambda row: str(row["scene"])):
            found = list(rows)
            yield f"**{scene}**: {found[0]['calls']} calls, {found[0]['nodes']} nodes."
            yield table(
                ["", *_PLACED.values()],
                [[row["placer"], *(row[key] / _UNITS.get(key, 1) for key in _PLACED)] for row in found],
            )
        yield "What a decision costs:"
        keys = ("nodes", "contexts", "decision_ms_p50", "decision_ms_p99", "turn_told_ms", "table_bytes_per_node")
        head = ("nodes", "contexts", "decision, p50 ms", "p99 ms", "a turn told, ms", "bytes a node")
        yield table(head, [[row[key] for key in keys] for row in line["figures"]["decisions"]])


def predictions(lines: Iterable[Line]) -> Iterator[str]:
    for line in of_bench(lines, "plan"):
        yield f"## Predictions of `llmaas plan`, {line['model']}"
        yield prose(
            "A daemon answered calls of one trace; what it had learned then is all that the prediction knows of the "
            "machine. Other traces were then run by a daemon, and in virtual time. " + about(line)
        )
        yield command(line["command"])
        yield _predicted(line["figures"]["traces"])


def _predicted(traces: dict[str, Any]) -> str:
    rows = []
    for pattern, found in traces.items():
        for what, name in (("switch_ms", "switch"), ("ttft_ms", "first token")):
            for percentile in ("p50", "p90", "p99", "mean"):
                real, told = found[what][percentile]
                rows.append([f"{pattern}, {name}, {percentile}", real, told, told / real if real else None])
        real, told = found["written"]
        rows.append([f"{pattern}, MB written", real / 1e6, told / 1e6, told / real if real else None])
    return table(["", "measured, ms", "predicted, ms", "predicted / measured"], rows)
