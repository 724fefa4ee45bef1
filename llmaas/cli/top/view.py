"""``llmaas top`` as a picture for a terminal: gauges, calls, contexts.

Law: draws what a ``Sample`` holds, in the room that there is. Names come from apps: control characters are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmaas.cli.out import human_age, human_bytes, printable
from llmaas.cli.served_states import state_text, tier_text
from llmaas.cli.tier_bar import GLYPHS, STYLES, tier_bar
from llmaas.cli.top.sample import Sample
from llmaas.records import ContextInfo, RequestInfo

TIERS = tuple(zip(("cells", "pool", "disk", "nowhere"), GLYPHS, STYLES, strict=True))
_BAR = 16
SORTS: dict[str, Callable[[ContextInfo], Any]] = {
    "last used": lambda info: -info.last_used,
    "tokens": lambda info: -info.n_tokens,
    "in memory": lambda info: -(info.tiers[0] + info.tiers[1]),
    "app": lambda info: (info.app, info.name),
}
"""How contexts can be sorted, by name."""
_KEYS = "q quit   s sort   up/down choose a call   c cancel it   + - its priority   space stand still"
_FIXED = 11
"""Lines of titles, heads, the legend and the line of keys."""


@dataclass(slots=True)
class Screen:
    """What the person at the terminal has chosen."""

    sort: str = "last used"
    chosen: int | None = None
    """The number of the call that keys are about."""
    still: bool = False
    said: str = ""
    """What came of the last key."""

    def next_sort(self) -> None:
        names = list(SORTS)
        self.sort = names[(names.index(self.sort) + 1) % len(names)]

    def choose(self, calls: Sequence[RequestInfo], step: int) -> None:
        """Choose the next call of the list, or the one before."""
        numbers = [call.call for call in calls]
        if not numbers:
            self.chosen = None
        elif self.chosen in numbers:
            self.chosen = numbers[(numbers.index(self.chosen) + step) % len(numbers)]
        else:
            self.chosen = numbers[0 if step > 0 else -1]


def picture(sample: Sample, screen: Screen, now: float, height: int, keys: bool = True) -> Group:
    """All of it in ``height`` lines; ``now`` is of the wall clock."""
    room = max(3, height - _FIXED - (1 if sample.models else 0))
    running = sample.running[: max(1, room // 3)]
    ended = sample.ended[: max(1, room // 4)]
    contexts = sorted(sample.contexts, key=SORTS[screen.sort])[: max(1, room - len(running) - len(ended))]
    n_more = len(sample.contexts) - len(contexts)
    parts: list[RenderableType] = [
        _title(sample),
        *([_models(sample)] if sample.models else []),
        _gauges(sample),
        _calls("calls", running, screen, now),
        _calls("have ended", ended, screen, now),
        _contexts(contexts, screen, now, n_more),
        _legend(),
    ]
    if keys:
        state = "   [stands still]" if screen.still else ""
        parts.append(Text(f"{screen.said or _KEYS}{state}", style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _title(sample: Sample) -> Text:
    stats = sample.stats
    requests = stats.get("requests", {})
    text = Text(printable(str(stats.get("model", "llmaas"))), style="bold", no_wrap=True, overflow="ellipsis")
    text.append(
        f"{_tier(stats)}   {requests.get('active', 0)} calls, {requests.get('waiting', 0)} wait"
        f"   {sample.tokens_per_s:.0f} tokens/s   {stats.get('contexts', 0)} contexts",
        "not bold",
    )
    return text


def _tier(stats: Mapping[str, Any]) -> str:
    """Where the weights of the model are; "" of a daemon that does not tell."""
    tier = stats.get("weights", {}).get("tier")
    return f"   {printable(str(tier))}" if tier else ""


def _models(sample: Sample) -> Text:
    """Where the models are; the one that the rest of the picture is about stands out."""
    text = Text("models ", no_wrap=True, overflow="ellipsis")
    for model in sample.models:
        text.append(printable(model.name), "bold" if model.name == sample.served_as else "")
        text.append(f" {tier_text(model)}{state_text(model)}   ", "dim")
    return text


def _gauges(sample: Sample) -> Text:
    """How full the tiers are."""
    text = Text(no_wrap=True, overflow="ellipsis")
    cells = sample.stats.get("cells", {})
    _gauge(text, "cells", cells.get("used", 0), cells.get("total", 0), lambda n: f"{n:.0f}")
    pool, disk = sample.stats.get("pool_bytes", {}), sample.stats.get("disk_bytes", {})
    _gauge(text, "pool", pool.get("used", 0), pool.get("budget"), human_bytes)
    _gauge(text, "disk", disk.get("chunks", 0), disk.get("quota"), human_bytes)
    return text


def _gauge(text: Text, name: str, used: float, most: object, shown: Callable[[float], str]) -> None:
    """``most`` is a number, or says that there is no limit."""
    _, glyph, style = next(tier for tier in TIERS if tier[0] == name)
    limit = float(most) if isinstance(most, (int, float)) and most > 0 else None
    n = round(min(1.0, used / limit) * _BAR) if limit else 0
    text.append(f"{name} ")
    text.append(glyph * n, style)
    text.append("·" * (_BAR - n), "dim")
    text.append(f" {shown(used)}{f' of {shown(limit)}' if limit else ''}   ")


def _calls(title: str, calls: Sequence[RequestInfo], screen: Screen, now: float) -> Table:
    table = _table(title)
    for head, right in (
        ("call", True),
        ("app", False),
        ("context", False),
        ("prio", True),
        ("state", False),
        ("for", True),
        ("prompt", True),
        ("answer", True),
        ("time went to", False),
    ):
        table.add_column(head, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for call in calls:
        style = "reverse" if call.call == screen.chosen and call.state != "ended" else ""
        table.add_row(
            str(call.call),
            printable(call.app),
            printable(call.name),
            str(call.priority),
            call.outcome or call.state,
            _seconds(call, now),
            str(call.n_prompt),
            str(call.n_generated),
            _spans(call),
            style=style,
        )
    return table


def _seconds(call: RequestInfo, now: float) -> str:
    ended = max((span.end_ms or 0.0 for span in call.spans), default=0.0) / 1e3
    return f"{ended if call.state == 'ended' else max(0.0, now - call.submitted):.1f} s"


def _spans(call: RequestInfo) -> Text:
    """The call's spans with their times; loads from one tier as one."""
    times: dict[str, float] = {}
    for span in call.spans:
        if span.end_ms is not None:
            times[span.name] = times.get(span.name, 0.0) + span.end_ms - span.start_ms
        else:
            times.setdefault(span.name, -1.0)
    styles = {name: style for name, _, style in TIERS} | {"recompute": "red", "prefill": "yellow", "decode": "green"}
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, ms in times.items():
        text.append(f"{name} ", styles.get(name, "dim"))
        text.append("...  " if ms < 0 else f"{ms:.0f} ms  ")
    return text


def _contexts(contexts: Sequence[ContextInfo], screen: Screen, now: float, n_more: int) -> Table:
    table = _table(f"contexts by {screen.sort}" + (f" ({n_more} more)" if n_more > 0 else ""))
    for head, right in (("app", False), ("context", False), ("tokens", True), ("are in", False), ("used", True)):
        table.add_column(head, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for info in contexts:
        name = Text(printable(info.name), style="" if info.usable else "strike")
        used = human_age(max(0.0, now - info.last_used))
        table.add_row(printable(info.app), name, f"{info.n_tokens:,}", tier_bar(info.tiers, _BAR), used)
    return table


def _legend() -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, glyph, style in TIERS:
        text.append(glyph * 2, style)
        text.append(f" {name}   ", "dim")
    return text


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1), header_style="dim")
