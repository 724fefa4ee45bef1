"""The demo's summary on the screen.

Law: shows the figures of the report, and computes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmaas.cli.demo.plan import Plan
from llmaas.cli.demo.records import DemoFindings, milliseconds
from llmaas.cli.demo.report import memory_lines, pair_lines, summary_rows, tier_lines
from llmaas.cli.demo.view import said

_HEADS = ("context\nwas in", "\ncalls", "\ntokens", "switch\np50", "\np99", "1st token\np50", "\np99", "\nfaster")


def print_summary(console: Console, findings: DemoFindings, plan: Plan, found: dict[str, Any]) -> None:
    """``found`` is the report."""
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="bold")
    for i, head in enumerate(_HEADS):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in summary_rows(found["figures"]):
        table.add_row(*row)
    _section(console, "Switching, one app at a time", ())
    console.print(table)
    together = found["figures"]["together"]
    lines = [
        *pair_lines(found["figures"]),
        f"all {together['n']} apps at once: switch p50 {milliseconds(together['switch_p50_ms'])}, "
        f"first token p50 {milliseconds(together['first_token_p50_ms'])}, the last after "
        f"{milliseconds(together['first_token_p99_ms'])}",
        f"answers come at {found['figures']['decode_tps_p50']:.0f} tokens/s",
    ]
    _section(console, None, lines)
    _section(console, "What was kept, and where", tier_lines(findings, plan))
    _section(console, "The daemon's resident memory", memory_lines(found["memory"]))
    restart = found["restart"]
    _section(
        console,
        "After a restart",
        (
            f"app {restart['app']} finds its {restart['tokens']:,} tokens again: switch from DISK "
            f"{milliseconds(restart['switch_ms'])}, first token {milliseconds(restart['ttft_ms'])}",
            f"user: {said(restart['question'])}",
            f"answer: {said(restart['answer'])}",
        ),
    )
    _section(console, "Checks", ())
    for check in findings.checks:
        mark = Text("  pass  " if check.ok else "  FAIL  ", style="green" if check.ok else "bold red")
        console.print(mark + Text(f"{check.name}: {check.text}"), soft_wrap=True)


def _section(console: Console, title: str | None, lines: Iterable[str]) -> None:
    if title:
        console.print(f"\n{title}", style="bold")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
