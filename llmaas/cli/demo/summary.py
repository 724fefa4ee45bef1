"""The demo's summary on the screen.

Law: shows the figures of the report, and computes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmaas.cli.demo.lines import memory_lines, pair_lines, restart_lines, summary_rows, tier_lines, together_lines
from llmaas.cli.demo.plan import Plan
from llmaas.cli.demo.records import DemoFindings

_HEADS = ("context\nwas in", "\ncalls", "\ntokens", "switch\np50", "\np99", "1st token\np50", "\np99", "\nfaster")


def print_summary(console: Console, findings: DemoFindings, plan: Plan, found: dict[str, Any]) -> None:
    """``found`` is the report."""
    _section(console, "Switching, one app at a time", ())
    console.print(_switch_table(found["figures"]))
    _section(console, None, [*pair_lines(found["figures"]), *together_lines(found["figures"])])
    _section(console, "What was kept, and where", tier_lines(findings, plan))
    _section(console, "The daemon's resident memory", memory_lines(found["memory"]))
    _section(console, "After a restart", restart_lines(found["restart"]))
    _section(console, "Checks", ())
    for check in findings.checks:
        mark = Text("  pass  " if check.ok else "  FAIL  ", style="green" if check.ok else "bold red")
        console.print(mark + Text(f"{check.name}: {check.text}"), soft_wrap=True)


def _switch_table(figures: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="bold")
    for i, head in enumerate(_HEADS):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in summary_rows(figures):
        table.add_row(*row)
    return table


def _section(console: Console, title: str | None, lines: Iterable[str]) -> None:
    if title:
        console.print(f"\n{title}", style="bold")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
