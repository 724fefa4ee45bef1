"""What the demo measures, and the figures made of it.

Law: pure values and arithmetic. Every time is the daemon's own, out of its replies, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from llmaas.frozen import frozen

ALONE, TOGETHER, PAIRED, RESTART = "one at a time", "all at once", "paired", "after restart"
CELLS, POOL, DISK, RECOMPUTED = "CELLS", "POOL", "DISK", "NONE"
SOURCES = (CELLS, POOL, DISK, RECOMPUTED)


@frozen
class DemoTurn:
    """One call of one app: where its context's tokens were, and what bringing them back took."""

    part: str
    app: str
    at: float
    """Seconds since the demo began."""
    tokens: int
    """Tokens of the context after the call."""
    cells: int
    pool: int
    disk: int
    recomputed: int
    n_prompt: int
    n_generated: int
    switch_ms: float
    queue_ms: float
    ttft_ms: float
    decode_tps: float

    @staticmethod
    def of(part: str, app: str, at: float, done: Mapping[str, Any]) -> DemoTurn:
        """From a Done as a map."""
        switch = done["switch"]
        places = {name: switch[name] for name in ("cells", "pool", "disk", "recomputed", "switch_ms")}
        same = {name: done[name] for name in ("n_prompt", "n_generated", "queue_ms", "ttft_ms", "decode_tps")}
        return DemoTurn(part=part, app=app, at=at, tokens=done["n_tokens"], **places, **same)

    @property
    def places(self) -> tuple[int, int, int, int]:
        """Tokens that were in CELLS, POOL, DISK and NONE."""
        return self.cells, self.pool, self.disk, self.recomputed

    @property
    def switched_in(self) -> int:
        """Tokens that the switch had to have in CELLS."""
        return sum(self.places)

    @property
    def source(self) -> str:
        """The slowest tier that any of the tokens came from."""
        return max((name for name, n in zip(SOURCES, self.places, strict=True) if n), key=SOURCES.index, default=CELLS)


@frozen
class Prefill:
    """A context computed from its text on the same daemon, with nothing shared."""

    app: str
    at: float
    tokens: int
    ms: float
    again: bool
    """False for the first time, when the app brought its history; True for what a switch saves."""


@frozen
class Pair:
    """The same context at the same length, one right after the other on an idle daemon."""

    prefill: Prefill
    turn: DemoTurn

    @property
    def ratio(self) -> float:
        return self.prefill.ms / max(self.turn.switch_ms, 1e-3)


@frozen
class Check:
    """Something that must hold, and whether it does."""

    name: str
    ok: bool
    text: str


@dataclass(slots=True)
class DemoFindings:
    """All that a run has measured."""

    turns: list[DemoTurn] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    """The daemon's own figures after the turns, all eight contexts alive."""
    tiers: dict[str, int] = field(default_factory=dict)
    """Tokens of the eight contexts by best place, at the same moment."""
    restart: dict[str, Any] = field(default_factory=dict)

    def of(self, source: str) -> list[DemoTurn]:
        """The turns of apps that called one at a time, from ``source``."""
        return [turn for turn in self.turns if turn.source == source and turn.part == ALONE]

    def prefill_ms(self, tokens: int) -> float:
        """What ``tokens`` cost to compute: on the straight line through all measured prefills."""
        xs = [prefill.tokens for prefill in self.prefills]
        slope, start = np.polyfit(xs, [prefill.ms for prefill in self.prefills], 1) if len(set(xs)) > 1 else (0, 0)
        return max(float(slope * tokens + start), 1e-3)

    def gains(self, turns: Iterable[DemoTurn]) -> list[float]:
        """How many times faster each switch was than computing as many tokens."""
        return [self.prefill_ms(turn.switched_in) / max(turn.switch_ms, 1e-3) for turn in turns]


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


def p50(values: Sequence[float]) -> float:
    return float(median(values)) if values else float("nan")


def milliseconds(ms: float) -> str:
    """Three figures, in the unit that suits: 0.04 ms, 8.31 ms, 412 ms, 3.91 s."""
    if ms >= 1000:
        return f"{ms / 1e3:.2f} s"
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"
