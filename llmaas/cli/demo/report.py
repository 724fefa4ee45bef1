"""The demo's summary: figures for scripts (JSON) and for people.

Law: every figure on the screen is in the JSON, with the machine, the versions, the model and the seed beside it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from llmaas.cli.demo.daemon import Memory
from llmaas.cli.demo.plan import ANSWER_TOKENS, CODED, Plan
from llmaas.cli.demo.records import (
    ALONE,
    DISK,
    POOL,
    SOURCES,
    TOGETHER,
    Check,
    DemoFindings,
    DemoTurn,
    Pair,
    milliseconds,
    p50,
    percentile,
)
from llmaas.cli.machine import ram
from llmaas.version import __version__

SPARE = 150_000_000
"""What the daemon may take besides model, cells and pool."""
_MB = 1e6


def memory_check(plan: Plan, model_bytes: int, cells: int, peak: Memory | None) -> tuple[Check, dict[str, int]]:
    """Whether the daemon stayed within model + cells + pool + 150 MB, and the parts of that bound."""
    parts = {"model": model_bytes, "cells": cells * plan.token_bytes, "pool": plan.pool_bytes, "spare": SPARE}
    bound = sum(parts.values())
    name = "resident memory within model + cells + pool + 150 MB"
    if peak is None:
        return Check(name, False, "the kernel does not tell it (no /proc/<pid>/status)"), parts
    return Check(name, peak.peak <= bound, f"peak {megabytes(peak.peak)} of {megabytes(bound)}"), parts


def figures(findings: DemoFindings, plan: Plan) -> dict[str, Any]:
    """The summary: milliseconds, tokens, bytes and ratios as named."""
    again = [prefill for prefill in findings.prefills if prefill.again]
    return {
        "switch": {source: _of_turns(findings, turns) for source in SOURCES if (turns := findings.of(source))},
        "together": _of_turns(findings, [turn for turn in findings.turns if turn.part == TOGETHER]),
        "prefill_again": {
            "n": len(again),
            "tokens_p50": p50([prefill.tokens for prefill in again]),
            "p50_ms": p50([prefill.ms for prefill in again]),
            "tokens_per_s": sum(p.tokens for p in again) / max(1e-9, sum(p.ms for p in again) / 1e3),
        },
        "paired": {
            source: _of_pairs(pairs)
            for source in SOURCES
            if (pairs := [pair for pair in findings.pairs if pair.turn.source == source])
        },
        "decode_tps_p50": p50([t.decode_tps for t in findings.turns if t.part == ALONE and t.n_generated > 4]),
        "tokens_needed": plan.tokens_final,
        "tokens_held": sum(findings.tiers.values()),
        "tokens_by_tier": findings.tiers,
    }


def _of_pairs(pairs: Sequence[Pair]) -> dict[str, float]:
    return {
        "n": len(pairs),
        "prefill_p50_ms": p50([pair.prefill.ms for pair in pairs]),
        "switch_p50_ms": p50([pair.turn.switch_ms for pair in pairs]),
        "ratio_p50": p50([pair.ratio for pair in pairs]),
        "ratio_min": min(pair.ratio for pair in pairs),
        "first_token_ratio_p50": p50([pair.prefill.ms / pair.turn.ttft_ms for pair in pairs]),
    }


def _of_turns(findings: DemoFindings, turns: Sequence[DemoTurn]) -> dict[str, float]:
    switches = [turn.switch_ms for turn in turns]
    first = [turn.ttft_ms for turn in turns]
    return {
        "n": len(turns),
        "tokens_p50": p50([turn.back for turn in turns]),
        "switch_p50_ms": p50(switches),
        "switch_p99_ms": percentile(switches, 99),
        "queue_p50_ms": p50([turn.queue_ms for turn in turns]),
        "queue_p99_ms": percentile([turn.queue_ms for turn in turns], 99),
        "first_token_p50_ms": p50(first),
        "first_token_p99_ms": percentile(first, 99),
        "times_faster_p50": p50(findings.gains(turns)),
    }


def report(
    findings: DemoFindings, plan: Plan, model: Path, model_name: str, data_dir: Path, memory: dict[str, Any]
) -> dict[str, Any]:
    """Everything, for the JSON file."""
    return {
        "bench": "demo",
        "machine": machine(data_dir),
        "versions": {
            "llmaas": __version__,
            "python": platform.python_version(),
            "llama-cpp-python": metadata.version("llama-cpp-python"),
            "numpy": metadata.version("numpy"),
        },
        "model": {"name": model_name, "file": model.name, "bytes": model.stat().st_size},
        "seed": plan.seed,
        "seconds_asked": plan.seconds,
        "pace": plan.pace,
        "settings": {
            "cells": plan.cells,
            "pool_bytes": plan.pool_bytes,
            "k_bits": CODED.k,
            "v_bits": CODED.v,
            "answer_tokens": ANSWER_TOKENS,
            "f16_bytes_needed": plan.f16_bytes,
            "coded_bytes_needed": plan.coded_bytes,
        },
        "figures": figures(findings, plan),
        "memory": memory,
        "daemon_stats": findings.stats,
        "restart": findings.restart,
        "checks": [asdict(check) for check in findings.checks],
        "turns": [asdict(turn) for turn in findings.turns],
        "prefills": [asdict(prefill) for prefill in findings.prefills],
    }


def machine(data_dir: Path) -> dict[str, Any]:
    found = ram()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": found.total if found else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "load_average": os.getloadavg()[0],
        "store_filesystem": filesystem(data_dir),
    }


def filesystem(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that ``path`` is on; 'unknown' where the kernel does not tell."""
    try:
        rows = [line.split() for line in mounts.read_text("utf-8").splitlines()]
    except OSError:
        return "unknown"
    path = path.resolve()
    around = [(len(row[1]), row[2]) for row in rows if path == Path(row[1]) or Path(row[1]) in path.parents]
    return max(around, default=(0, "unknown"))[1]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def megabytes(n: float) -> str:
    return f"{n / _MB:.0f} MB"


def budget_lines(plan: Plan) -> Iterator[str]:
    """What the contexts will need, and what they get."""
    first = sum(app.tokens_first for app in plan.apps)
    given = plan.cells_bytes + plan.pool_bytes
    yield (
        f"{len(plan.apps)} apps with real conversations: {first:,} tokens now, about {plan.tokens_final:,} in the end."
    )
    yield (
        f"needed to keep them all ready: {megabytes(plan.f16_bytes)} as f16 KV cache "
        f"({plan.token_bytes:,} bytes a token), {megabytes(plan.coded_bytes)} coded at 4 bits"
    )
    yield (
        f"given: {megabytes(given)} = cells {megabytes(plan.cells_bytes)} ({plan.cells:,} tokens: the context at work) "
        f"+ pool {megabytes(plan.pool_bytes)} (a third of all, coded); the rest waits on disk"
    )


def summary_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Source, turns, tokens, switch p50 and p99, first token p50 and p99, times faster than computing."""
    rows: list[tuple[str, ...]] = []
    for source in SOURCES:
        row = found["switch"].get(source)
        if row:
            times = f"{row['times_faster_p50']:,.0f}x" if source in (POOL, DISK) else ""
            ms = [milliseconds(row[f"{what}_{p}_ms"]) for what in ("switch", "first_token") for p in ("p50", "p99")]
            rows.append((source, str(row["n"]), f"{row['tokens_p50']:,.0f}", *ms, times))
    again = found["prefill_again"]
    anew = milliseconds(again["p50_ms"])
    rows.append(("computed", str(again["n"]), f"{again['tokens_p50']:,.0f}", "", "", anew, "", "1x"))
    return rows


def pair_lines(found: dict[str, Any]) -> Iterator[str]:
    for source, row in found["paired"].items():
        n = f"{row['n']} context{'s' if row['n'] > 1 else ''}"
        yield (
            f"on an idle daemon, {n} computed again and then switched back from {source}: "
            f"{milliseconds(row['prefill_p50_ms'])} against {milliseconds(row['switch_p50_ms'])}, "
            f"{row['ratio_p50']:,.0f}x faster (least {row['ratio_min']:,.0f}x); "
            f"the user's first token {row['first_token_ratio_p50']:,.0f}x sooner"
        )


def tier_lines(findings: DemoFindings, plan: Plan) -> Iterator[str]:
    stats, tiers = findings.stats, findings.tiers
    held = sum(tiers.values())
    yield (
        f"contexts held: {held:,} tokens in {stats['contexts']} contexts, best copy in CELLS {tiers['cells']:,}, "
        f"POOL {tiers['pool']:,}, DISK {tiers['disk']:,}, NONE {tiers['none']:,} "
        "(the newest token of an answer is computed with the next message)"
    )
    cells, pool, disk = stats["cells"], stats["pool_bytes"], stats["disk_bytes"]
    yield (
        f"bytes: CELLS {megabytes(cells['used'] * plan.token_bytes)} of "
        f"{megabytes(cells['total'] * plan.token_bytes)}, "
        f"POOL {megabytes(pool['used'])} of {megabytes(pool['budget'])}, DISK {megabytes(disk['chunks'])}"
    )
    fit = (plan.cells_bytes + plan.pool_bytes) // plan.token_bytes
    mean = held / max(1, stats["contexts"])
    yield (
        f"the same memory as plain f16 cells would hold {fit:,} tokens: "
        f"{fit / mean:.1f} of these {stats['contexts']} contexts"
    )


def memory_lines(memory: dict[str, Any]) -> Iterator[str]:
    parts, peak = memory["bound_parts"], memory["at_fullest"]
    bound = " + ".join(f"{name} {megabytes(n)}" for name, n in parts.items())
    yield f"allowed: {megabytes(sum(parts.values()))} = {bound}"
    if peak:
        yield (
            f"taken: {megabytes(memory['peak_bytes'])} at most; when fullest {megabytes(peak['anon'])} of its own "
            f"and {megabytes(peak['file'])} of mapped files (the model and libraries, each page counted once)"
        )
