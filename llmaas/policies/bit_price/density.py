"""LLMS' levels of 8, 4 and 2 bits by attention density (arXiv 2403.11805, section 3.2), for a service that goes on.

Law: pure. What the rule of ``llms`` gives a list of chunks of one context, this gives chunks as they come: against the
densities of the last chunks that were measured, whosever they are. A mean of 4 bits, as the paper has.

That rule has two optima only (``llms`` says why): all chunks at 4 bits, or a third at 8 and the others at 2. The second
is better as long as the densest third has less than two thirds of all density.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from llmaas.records import Precision

_HIGH, _MIDDLE, _LOW = Precision(8, 8), Precision(4, 4), Precision(2, 2)
_KEPT = 1024
"""Densities that chunks are compared with, the newest."""
_TOP = 3
"""One chunk in so many gets the most bits."""


class DensityLevels:
    """
    >>> levels = DensityLevels()
    >>> for density in (0.1, 0.2, 0.3):
    ...     levels.learn(density)
    >>> [levels.choose(density).k for density in (0.3, 0.2, None)]
    [8, 2, 4]
    >>> levels.learn(9.0)  # now one chunk has nearly all
    >>> levels.choose(9.0).k
    4
    """

    def __init__(self) -> None:
        self._order: list[float] = []
        self._newest: deque[float] = deque()

    def learn(self, density: float) -> None:
        """A chunk was measured."""
        insort(self._order, density)
        self._newest.append(density)
        if len(self._newest) > _KEPT:
            self._order.pop(bisect_left(self._order, self._newest.popleft()))

    def choose(self, density: float | None) -> Precision:
        """The precision of a chunk; ``density``: None if it was not measured."""
        n_top = len(self._order) // _TOP
        if density is None or not n_top:
            return _MIDDLE
        top = sum(self._order[-n_top:])
        rest = sum(self._order) - top
        if top + 4 * rest <= 2 * (top + rest):
            return _MIDDLE
        return _HIGH if density >= self._order[-n_top] else _LOW
