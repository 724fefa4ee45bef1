"""F3. How a context comes back: which chunks are loaded, which are recomputed from tokens.

Law: segments are contiguous, ascending and cover every chunk asked for. The planner carries out the first one
and asks again, so a chunk that proves damaged on the way is simply part of the next question.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmaas.records import Tier


class Way(enum.Enum):
    LOAD = "load"
    RECOMPUTE = "recompute"


@dataclass(frozen=True, slots=True)
class Segment:
    """Chunks first .. stop-1 of the question, brought back one way."""

    way: Way
    first: int
    stop: int


class SplitPolicy(Protocol):
    def plan(self, tiers: Sequence[Tier]) -> list[Segment]:
        """Segments for consecutive chunks whose best copies are in ``tiers`` (POOL, DISK or NONE)."""


class LoadFirst:
    """Load whatever has a copy, recompute only what has none.

    Right where loading beats recomputing at every length, which holds for POOL always and for DISK on flash
    (about 100x on a 135M model); slow disks want a learned split.
    """

    def plan(self, tiers: Sequence[Tier]) -> list[Segment]:
        segments: list[Segment] = []
        first = 0
        for i, tier in enumerate(tiers):
            way = Way.RECOMPUTE if tier is Tier.NONE else Way.LOAD
            if segments and segments[-1].way is way:
                segments[-1] = Segment(way, first, i + 1)
            else:
                first = i
                segments.append(Segment(way, i, i + 1))
        return segments


SPLIT: dict[str, Callable[[], SplitPolicy]] = {"load_first": LoadFirst}
