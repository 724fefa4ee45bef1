"""Where a turn's tokens were, as a coloured bar and in words.

Law: control characters are removed from what a model said before it is shown.
"""

from __future__ import annotations

from rich.text import Text

from llmaas.cli.demo.records import SOURCES, DemoTurn
from llmaas.cli.out import printable

STYLES = {"CELLS": "green", "POOL": "cyan", "DISK": "magenta", "NONE": "red"}
GLYPHS = {"CELLS": "█", "POOL": "▓", "DISK": "▒", "NONE": "░"}
BAR_WIDTH = 14


def bar(turn: DemoTurn) -> Text:
    """Where the tokens were, in ``BAR_WIDTH`` characters; a tier that had any tokens gets at least one."""
    text = Text()
    total, used = max(1, turn.switched_in), 0
    present = [(name, n) for name, n in zip(SOURCES, turn.places, strict=True) if n]
    for i, (name, n) in enumerate(present):
        rest = len(present) - i - 1
        width = max(1, min(round(BAR_WIDTH * n / total), BAR_WIDTH - used - rest)) if rest else BAR_WIDTH - used
        text.append(GLYPHS[name] * width, STYLES[name])
        used += width
    return text


def said(text: str) -> str:
    return " ".join(printable(text, keep="\n").split())


def places(turn: DemoTurn) -> str:
    """'POOL 448, DISK 512'."""
    found = zip(SOURCES, turn.places, strict=True)
    return ", ".join(f"{name} {n}" for name, n in found if n) or "nothing"
