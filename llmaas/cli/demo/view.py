"""The demo on the screen while it runs: a live table in a terminal, plain lines anywhere else.

Law: shows only what it is told; never decides anything. What a model said is stripped of control characters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmaas.cli.demo.plan import Plan
from llmaas.cli.demo.records import SOURCES, DemoTurn, Prefill, milliseconds
from llmaas.cli.out import printable

STYLES = {"CELLS": "green", "POOL": "cyan", "DISK": "magenta", "NONE": "red"}
_GLYPHS = {"CELLS": "█", "POOL": "▓", "DISK": "▒", "NONE": "░"}
_BAR = 14
_COLUMNS = (
    ("app", 7),
    ("tokens", 6),
    ("chunks were in", _BAR),
    ("switch", 7),
    ("1st token", 9),
    ("tok/s", 5),
    ("now", None),
)
"""Heads and widths, fixed so that nothing jumps; the last one takes what is left."""
_TEXTS = ("app", "chunks were in", "now")
Gauge = Callable[[], str]
"""One line on time and memory as they are now."""


class View(Protocol):
    def part(self, title: str) -> None:
        """A new part of the story begins."""

    def busy(self, app: str, what: str) -> None: ...

    def text(self, app: str, text: str) -> None:
        """The answer as far as it has come."""

    def turned(self, turn: DemoTurn, text: str) -> None:
        """A call has ended."""

    def prefilled(self, prefill: Prefill) -> None:
        """A context has been computed from its text."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view(console: Console, plan: Plan, gauge: Gauge) -> View:
    return LiveView(console, plan, gauge) if console.is_terminal else PlainView(console)


def bar(turn: DemoTurn) -> Text:
    """Where the tokens were, in ``_BAR`` characters; what was there at all gets at least one."""
    text = Text()
    total, used = max(1, turn.back), 0
    present = [(name, n) for name, n in zip(SOURCES, turn.places, strict=True) if n]
    for i, (name, n) in enumerate(present):
        rest = len(present) - i - 1
        width = max(1, min(round(_BAR * n / total), _BAR - used - rest)) if rest else _BAR - used
        text.append(_GLYPHS[name] * width, STYLES[name])
        used += width
    return text


def said(text: str) -> str:
    return " ".join(printable(text, keep="\n").split())


def places(turn: DemoTurn) -> str:
    """'POOL 448, DISK 512'."""
    found = zip(SOURCES, turn.places, strict=True)
    return ", ".join(f"{name} {n}" for name, n in found if n) or "nothing"


class PlainView:
    """A line for everything that ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def part(self, title: str) -> None:
        self._print(f"\n-- {title}")

    def busy(self, app: str, what: str) -> None: ...

    def text(self, app: str, text: str) -> None: ...

    def turned(self, turn: DemoTurn, text: str) -> None:
        self._print(
            f"{turn.at:6.1f} s  {turn.app:8} {turn.tokens:5} tokens  switch {milliseconds(turn.switch_ms):>8}"
            f"  first token {milliseconds(turn.ttft_ms):>8}  {turn.decode_tps:5.1f} tok/s  from {places(turn)}"
        )

    def prefilled(self, prefill: Prefill) -> None:
        what = "computed again" if prefill.again else "read"
        self._print(
            f"{prefill.at:6.1f} s  {prefill.app:8} {prefill.tokens:5} tokens  {what} in {milliseconds(prefill.ms)}"
        )

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None: ...


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

    def __init__(self, console: Console, plan: Plan, gauge: Gauge) -> None:
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

    def turned(self, turn: DemoTurn, text: str) -> None:
        row = self._rows[turn.app]
        row.active = False
        row.tokens, row.bar, row.now = f"{turn.tokens:,}", bar(turn), said(text)
        row.switch, row.ttft = milliseconds(turn.switch_ms), milliseconds(turn.ttft_ms)
        row.speed = f"{turn.decode_tps:.0f}"

    def prefilled(self, prefill: Prefill) -> None:
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
            legend.append(_GLYPHS[name] * 2, STYLES[name])
            legend.append(f" {name} {meaning}   ", "dim")
        return Group(
            Text(self._title, style="bold", no_wrap=True, overflow="ellipsis"),
            Text(self._gauge(), style="dim"),
            table,
            legend,
            Text(),
        )
