"""The draws of one step, and constrained ones that take longer than it may: these end in a later step.

Law: a draw that was put off goes on where it stopped, from the logits that it began with, so what is drawn does not
depend on how often it was. The draw that has taken the least so far goes first, since most grammars take little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence

from llmaas.engine.base import BatchItem, Row, Undrawn
from llmaas.engine.constraint.limits import STEP_S
from llmaas.engine.constraint.port import Constraint

Draw = Generator[None, None, int]
"""Yields before each piece of work, and returns the token."""


class Draws:
    """The draws that were put off, by their samplers' numbers, and what is left of the step's work."""

    def __init__(self) -> None:
        self._begun: dict[int, Draw] = {}
        self._taken: dict[int, int] = {}
        """Steps of its constraint that each sampler's draws have taken."""
        self._left = math.inf
        """Steps of constraints that the engine's step may still take; below 0 if the last piece took more."""

    def row(
        self,
        items: Sequence[BatchItem],
        sources: Sequence[int | None],
        draw: Callable[[int, int], int | Undrawn],
        take_back: Callable[[int, int], None],
        draw_s: float,
    ) -> Row:
        """What the items of a step draw, by constraints in ``draw_s`` seconds together, about.

        ``sources``: what ``draw``, which is given it after the sampler, draws an item's token from; None for an item
        without a sampler. ``take_back`` removes the positions of a sequence from one on: the last of an item whose draw
        is put off.
        """
        self._left = draw_s / STEP_S
        row: list[int | Undrawn | None] = [None] * len(items)
        wanted = [
            (self._taken.get(item.sampler, 0), i, item.sampler, source)
            for i, (item, source) in enumerate(zip(items, sources, strict=True))
            if item.sampler is not None and source is not None
        ]
        for _, i, sampler, source in sorted(wanted):
            row[i] = draw(sampler, source)
            if row[i] is Undrawn.LATER:
                take_back(items[i].seq, items[i].pos + len(items[i].tokens) - 1)
        return row

    def draw(self, sampler: int, constraint: Constraint, begin: Callable[[], Draw]) -> int | None:
        """Go on with the sampler's draw, or ``begin`` it. The token; None if the rest is put off. Raises what the draw
        raises."""
        draw = self._begun.pop(sampler, None)
        if draw is None:
            next(draw := begin())
        while self._left > 0:
            token = _go_on(draw)
            self._left -= constraint.worked
            self._taken[sampler] = self._taken.get(sampler, 0) + constraint.worked
            if token is not None:
                return token
        self._begun[sampler] = draw
        return None

    def forget(self, sampler: int) -> None:
        """The sampler is gone, or another one has its number."""
        self._begun.pop(sampler, None)
        self._taken.pop(sampler, None)


def _go_on(draw: Draw) -> int | None:
    try:
        next(draw)
    except StopIteration as end:
        token: int = end.value
        return token
    return None
