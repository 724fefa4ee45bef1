"""What the demo's measurements come to: the figures of its report, and whether the memory held.

Law: arithmetic on what was measured; reads nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmaas.cli.demo.lines import megabytes
from llmaas.cli.demo.memory import Memory
from llmaas.cli.demo.plan import Plan
from llmaas.cli.demo.records import (
    ALONE,
    SOURCES,
    TOGETHER,
    Check,
    DemoFindings,
    DemoTurn,
    Pair,
    Prefill,
    p50,
    percentile,
)

SPARE = 150_000_000
"""What the daemon may take besides model, cells and pool."""


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
    alone = [turn for turn in findings.turns if turn.part == ALONE]
    together = [turn for turn in findings.turns if turn.part == TOGETHER]
    by_source = {source: findings.of(source) for source in SOURCES}
    pairs = {source: [pair for pair in findings.pairs if pair.turn.source == source] for source in SOURCES}
    return {
        "switch": {source: _of_turns(findings, turns) for source, turns in by_source.items() if turns},
        "together": _of_turns(findings, together),
        "prefill_again": _of_prefills([prefill for prefill in findings.prefills if prefill.again]),
        "paired": {source: _of_pairs(some) for source, some in pairs.items() if some},
        "decode_tps_p50": p50([turn.decode_tps for turn in alone if turn.n_generated > 4]),
        "tokens_needed": plan.tokens_final,
        "tokens_held": sum(findings.tiers.values()),
        "tokens_by_tier": findings.tiers,
    }


def _of_prefills(prefills: Sequence[Prefill]) -> dict[str, float]:
    tokens, ms = [prefill.tokens for prefill in prefills], [prefill.ms for prefill in prefills]
    return {
        "n": len(prefills),
        "tokens_p50": p50(tokens),
        "p50_ms": p50(ms),
        "tokens_per_s": sum(tokens) / max(1e-9, sum(ms) / 1e3),
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
        "tokens_p50": p50([turn.switched_in for turn in turns]),
        "switch_p50_ms": p50(switches),
        "switch_p99_ms": percentile(switches, 99),
        "queue_p50_ms": p50([turn.queue_ms for turn in turns]),
        "queue_p99_ms": percentile([turn.queue_ms for turn in turns], 99),
        "first_token_p50_ms": p50(first),
        "first_token_p99_ms": percentile(first, 99),
        "times_faster_p50": p50(findings.gains(turns)),
    }
