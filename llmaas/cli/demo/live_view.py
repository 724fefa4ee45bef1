"""The demo as a live table, for a terminal.

Law: redrawn from its own rows only, at a fixed width, so that nothing jumps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmaas.cli.demo.plan import Plan
from llmaas.cli.demo.records import SOURCES, DemoTurn, Prefill, milliseconds
from llmaas.cli.demo.tier_bar import BAR_WIDTH, GLYPHS, STYLES, bar, said

_COLUMNS = (
    ("app", 7),
    ("tokens", 6),
    ("chunks were in", BAR_WIDTH),
    ("switch", 7),
    ("1st token", 9),
    ("tok/s", 5),
    ("now", None),
)
"""Heads and widths, fixed so that nothing jumps; the last one takes what is left."""
_TEXTS = ("app", "chunks were in", "now")


@dataclass(slots=True)
class _Row:
    tokens: str = ""
    bar: Text | str = ""
    switch: str = ""
    ttft: str = ""
    speed: str = ""
    now: str = ""
    active: bool = False


class LiveView:
    """A table with a row for each app, redrawn as things happen."""

    def __init__(self, console: Console, plan: Plan, gauge: Callable[[], str]) -> None:
        self._rows = {app.app: _Row() for app in plan.apps}
        self._title, self._gauge = "", gauge
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._draw)

    def part(self, title: str) -> None:
        self._title = title
        for row in self._rows.values():
            row.active = False

    def busy(self, app: str, what: str) -> None:
        self._rows[app].now, self._rows[app].active = what, True

    def text(self, app: str, text: str) -> None:
        self._rows[app].now = said(text)

    def turn_ended(self, turn: DemoTurn, text: str) -> None:
        row = self._rows[turn.app]
        row.active = False
        row.tokens, row.bar, row.now = f"{turn.tokens:,}", bar(turn), said(text)
        row.switch, row.ttft = milliseconds(turn.switch_ms), milliseconds(turn.ttft_ms)
        row.speed = f"{turn.decode_tps:.0f}"

    def prefill_ended(self, prefill: Prefill) -> None:
        row = self._rows[prefill.app]
        row.active = False
        if prefill.again:
            row.now = f"computed again in {milliseconds(prefill.ms)}"
        else:
            row.tokens = f"{prefill.tokens:,}"
            row.now = f"read in {milliseconds(prefill.ms)}"

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _draw(self) -> Group:
        table = Table(expand=True, box=None, padding=(0, 1), header_style="bold")
        for head, width in _COLUMNS:
            table.add_column(
                head,
                justify="left" if head in _TEXTS else "right",
                no_wrap=True,
                overflow="ellipsis",
                width=width,
                ratio=None if width else 1,
            )
        for app, row in self._rows.items():
            style = "bold" if row.active else ""
            now = Text(row.now, style="bold" if row.active else "dim")
            table.add_row(Text(app, style=style), row.tokens, row.bar, row.switch, row.ttft, row.speed, now)
        legend = Text("  ")
        for name, meaning in zip(SOURCES, ("in use", "RAM, 4-bit", "disk", "computed again"), strict=True):
            legend.append(GLYPHS[name] * 2, STYLES[name])
            legend.append(f" {name} {meaning}   ", "dim")
        return Group(
            Text(self._title, style="bold", no_wrap=True, overflow="ellipsis"),
            Text(self._gauge(), style="dim"),
            table,
            legend,
            Text(),
        )
