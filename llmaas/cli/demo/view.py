"""The demo on the screen while it runs: a live table in a terminal, plain lines anywhere else.

Law: a view shows what its methods are given, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console

from llmaas.cli.demo.live_view import LiveView
from llmaas.cli.demo.plain_view import PlainView
from llmaas.cli.demo.plan import Plan
from llmaas.cli.demo.records import DemoTurn, Prefill

Gauge = Callable[[], str]
"""One line on time and memory as they are now."""


class View(Protocol):
    """What the demo reports to while it runs."""

    def part(self, title: str) -> None:
        """A new part of the story begins."""

    def busy(self, app: str, what: str) -> None:
        """An app has begun to do ``what``."""

    def text(self, app: str, text: str) -> None:
        """The answer as far as it has come."""

    def turn_ended(self, turn: DemoTurn, text: str) -> None:
        """A call has ended with the answer ``text``."""

    def prefill_ended(self, prefill: Prefill) -> None:
        """A context has been computed from its text."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view(console: Console, plan: Plan, gauge: Gauge) -> View:
    return LiveView(console, plan, gauge) if console.is_terminal else PlainView(console)
