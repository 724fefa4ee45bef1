"""The demo as plain lines, for a pipe or a file.

Law: a line for everything that ends; no control characters.
"""

from __future__ import annotations

from rich.console import Console

from llmaas.cli.demo.records import DemoTurn, Prefill, milliseconds
from llmaas.cli.demo.tier_bar import places


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

    def turn_ended(self, turn: DemoTurn, text: str) -> None:
        self._print(
            f"{turn.at:6.1f} s  {turn.app:8} {turn.tokens:5} tokens  switch {milliseconds(turn.switch_ms):>8}"
            f"  first token {milliseconds(turn.ttft_ms):>8}  {turn.decode_tps:5.1f} tok/s  from {places(turn)}"
        )

    def prefill_ended(self, prefill: Prefill) -> None:
        what = "computed again" if prefill.again else "read"
        self._print(
            f"{prefill.at:6.1f} s  {prefill.app:8} {prefill.tokens:5} tokens  {what} in {milliseconds(prefill.ms)}"
        )

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None: ...
