"""Which models leave memory for another: those whose absence is likely to cost least for the memory that it frees.

Law: pure; a model that is in use or pinned stays. Nothing is proposed that does not free enough.

A model of n bytes that takes c seconds to load, and comes back at a rate of r uses a second, saves r * c seconds a
second while it stays, for n bytes of memory; the least of r * c / n goes first. Its rate is taken from its last uses:
one over the mean time between them, or over the time since the last one if that is longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.frozen import frozen

_SOONEST_S = 1.0
"""Uses closer together than this count as one."""


@frozen
class ModelInMemory:
    name: str
    nbytes: int
    load_s: float
    """Seconds that loading it again takes."""
    idle_s: float
    """Seconds since its last use."""
    between_s: float
    """Mean seconds between its uses."""
    stays: bool = False
    """It is in use, or pinned."""

    @property
    def worth(self) -> float:
        """Seconds saved in a second, for a byte."""
        return self.load_s / max(self.idle_s, self.between_s, _SOONEST_S) / max(1, self.nbytes)


def models_to_leave(needed: int, there: Sequence[ModelInMemory]) -> list[str] | None:
    """The names of models that must leave so that ``needed`` bytes become free; None if that cannot be had now.

    >>> idle = ModelInMemory("old", 100, 1.0, idle_s=500, between_s=60)
    >>> models_to_leave(80, [idle, ModelInMemory("new", 100, 1.0, idle_s=5, between_s=60)])
    ['old']
    """
    leaving: list[ModelInMemory] = []
    for model in sorted((each for each in there if not each.stays), key=lambda each: each.worth):
        if sum(each.nbytes for each in leaving) >= needed:
            break
        leaving.append(model)
    if sum(each.nbytes for each in leaving) < needed:
        return None
    for model in sorted(leaving, key=lambda each: -each.worth):  # a large one may have made small ones superfluous
        if sum(each.nbytes for each in leaving) - model.nbytes >= needed:
            leaving.remove(model)
    return [each.name for each in leaving]
