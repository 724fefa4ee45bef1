"""Where a turn's tokens were, as a coloured bar and in words.

Law: control characters are removed from what a model said before it is shown.
"""

from __future__ import annotations

from rich.text import Text

from llmaas.cli import tier_bar as tiers
from llmaas.cli.demo.records import SOURCES, DemoTurn
from llmaas.cli.out import printable

STYLES = dict(zip(SOURCES, tiers.STYLES, strict=True))
GLYPHS = dict(zip(SOURCES, tiers.GLYPHS, strict=True))
BAR_WIDTH = 14


def bar(turn: DemoTurn) -> Text:
    """Where the tokens were, in ``BAR_WIDTH`` characters."""
    return tiers.tier_bar(turn.places, BAR_WIDTH)


def said(text: str) -> str:
    return " ".join(printable(text, keep="\n").split())


def places(turn: DemoTurn) -> str:
    """'POOL 448, DISK 512'."""
    found = zip(SOURCES, turn.places, strict=True)
    return ", ".join(f"{name} {n}" for name, n in found if n) or "nothing"
