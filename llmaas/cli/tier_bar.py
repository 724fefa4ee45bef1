"""Where a context's tokens are, as a coloured bar.

Law: draws and decides nothing; the order of the tiers is that of ``Tier``.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

GLYPHS, STYLES = "█▓▒░", ("green", "cyan", "magenta", "red")
"""Of CELLS, POOL, DISK and NONE."""


def tier_bar(places: Sequence[int], width: int) -> Text:
    """The tokens of each tier in ``width`` characters; a tier that has any gets at least one.

    >>> tier_bar((60, 0, 1, 0), 8).plain
    '███████▒'
    """
    text = Text()
    total, used = max(1, sum(places)), 0
    present = [(glyph, style, n) for glyph, style, n in zip(GLYPHS, STYLES, places, strict=True) if n]
    for i, (glyph, style, n) in enumerate(present):
        rest = len(present) - i - 1
        size = max(1, min(round(width * n / total), width - used - rest)) if rest else width - used
        text.append(glyph * size, style)
        used += size
    return text
