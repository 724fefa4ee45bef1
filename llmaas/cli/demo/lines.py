"""The demo's figures in words, a line for each.

Law: shows figures, and computes none but sums and shares of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmaas.cli.demo.plan import Plan
from llmaas.cli.demo.records import DISK, POOL, SOURCES, DemoFindings, milliseconds
from llmaas.cli.demo.tier_bar import said

_MB = 1e6


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


def together_lines(found: dict[str, Any]) -> Iterator[str]:
    together = found["together"]
    yield (
        f"all {together['n']} apps at once: switch p50 {milliseconds(together['switch_p50_ms'])}, "
        f"first token p50 {milliseconds(together['first_token_p50_ms'])}, the last after "
        f"{milliseconds(together['first_token_p99_ms'])}"
    )
    yield f"answers come at {found['decode_tps_p50']:.0f} tokens/s"


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


def restart_lines(restart: dict[str, Any]) -> Iterator[str]:
    yield (
        f"app {restart['app']} finds its {restart['tokens']:,} tokens again: switch from DISK "
        f"{milliseconds(restart['switch_ms'])}, first token {milliseconds(restart['ttft_ms'])}"
    )
    yield f"user: {said(restart['question'])}"
    yield f"answer: {said(restart['answer'])}"
