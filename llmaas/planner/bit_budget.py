"""The bit budget: how sensitive every chunk is, and with how many bits it is coded.

Law: work per event does not grow with the number of chunks. A chunk's precision is what the present price makes of its
sensitivity (``policies.bit_price``), decided when it is first coded; later it may only fall, from its stored form.

All contexts share one budget of bytes: so many bits per stored value. When it is exceeded, a CLOCK hand goes round the
stored chunks and proposes those to which the present price gives fewer bits than they have: insensitive ones, and those
of contexts that were not used for long.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from llmaas.kvchunks.codec.sensitivity import merged
from llmaas.planner.actions import ChunkTarget
from llmaas.planner.context import Context
from llmaas.planner.settings import PlannerSettings
from llmaas.policies.bit_price import BitCurve, ChunkDemand, DensityLevels, Price, PriceBook, demand
from llmaas.records import CHUNK_TOKENS, LOSSLESS, ChunkKey, ChunkMeta, ChunkSensitivity, ContextId, Precision

_HALF_LIFE_S = 3600.0
"""After so long without use, an error in a chunk counts half: the context may never come back."""
_COLDEST = 1 / 64
"""It never counts less than this."""
_PRIOR = (1.6e-4, 1.8e-4)
"""Sensitivities of K and V to expect before any was measured: SmolLM2-135M's mean. Only their ratio counts."""
NOBODY = ContextId("")
_VISITS = 16
"""Chunks that the hand visits at an event while the budget is exceeded."""
_RECOUNTS = 4
"""Stored chunks whose heat is brought up to date for each chunk that is coded."""
_PRECISIONS = 256
"""At least as many as there are."""
_CHANGED = 1.5
"""Factor by which a sensitivity must have moved for the index on disk to be written again."""
_WORTH = 0.2
"""Of its bytes a chunk must lose to be coded again, since it must then be written again, too."""


class Readiness(enum.Enum):
    """Whether a stored chunk can be coded again, from the form that the POOL has."""

    NOW = "now"
    LATER = "later"
    """It is moving or pinned."""
    NEVER = "never"
    """It is not in the POOL, or no context contains it."""


@dataclass(slots=True, eq=False)
class _Entry:
    """What is known of a chunk. ``nbytes`` are of its stored form; 0 while it is not stored."""

    owner: ContextId = NOBODY
    sensitivity: ChunkSensitivity | None = None
    precision: Precision = LOSSLESS
    nbytes: int = 0
    used: float = 0.0
    demand: ChunkDemand | None = None
    """As which the price book counts it."""
    persisted: ChunkSensitivity | None = None
    """The ``sensitivity`` that is on DISK, or on its way there."""


class BitBudget:
    """Precisions under one budget. ``spending`` "uniform" makes it answer ``settings.precision`` and keep nothing; with
    "llms" chunks stay as they were coded.
    """

    def __init__(self, settings: PlannerSettings, encoded_size: Callable[[int, Precision], int]) -> None:
        """``encoded_size``: bytes of so many tokens at a precision."""
        self._settings = settings
        self._size = lru_cache(_PRECISIONS)(lambda precision: encoded_size(CHUNK_TOKENS, precision))
        self._book = PriceBook(self._size, _PRIOR)
        self._levels = DensityLevels() if settings.spending == "llms" else None
        g = settings.geometry
        self._chunk_values = CHUNK_TOKENS * g.n_layer * (g.k_dim + g.v_dim)
        self._chunk_budget = settings.bits * self._chunk_values / 8
        self._entries: dict[ChunkKey, _Entry] = {}
        self._hand: deque[ChunkKey] = deque()
        """The ring of stored chunks; the CLOCK hand is at its front."""
        self._unvisited = 0
        """Chunks the hand has yet to visit since the newest was stored; 0: a full round found nothing more."""
        self.nbytes = 0
        """Of the coded full chunks that are stored."""
        self.stored_chunks = 0

    @property
    def budget(self) -> int:
        """Bytes for the chunks that are stored now."""
        return int(self.stored_chunks * self._chunk_budget)

    def set_bits(self, bits: float) -> None:
        """The budget is so many bits per value from now on. With fewer, all stored chunks are looked at anew."""
        before, self._chunk_budget = self._chunk_budget, bits * self._chunk_values / 8
        if self._chunk_budget < before:
            self._unvisited = len(self._hand)

    @property
    def curve(self) -> BitCurve | None:
        """What the chunks would do with bytes; None if bits are not spent by what they do."""
        return None if not self._settings.measure or self._levels is not None else self._book.curve(self._chunk_values)

    def is_exceeded(self, slack: float) -> bool:
        """Whether stored chunks take more than the budget, and this part of it."""
        return self.nbytes > (1 + slack) * self.budget

    # -- chunks are measured, coded, used, and go

    def choose(self, key: ChunkKey, n_tokens: int, now: float) -> Precision:
        """Precision for a chunk that is about to be coded from computed values."""
        if n_tokens < CHUNK_TOKENS:
            return LOSSLESS
        if not self._settings.measure:
            return self._settings.precision
        for _ in range(min(_RECOUNTS, len(self._hand))):
            self._advance_clock_hand(now)
        entry = self._entries.setdefault(key, _Entry())
        entry.used = now
        counted = self._recount(entry, now)
        if self._levels is not None:
            return self._levels.choose(None if entry.sensitivity is None else entry.sensitivity.density)
        return self._book.choose(counted, self._price(), key)

    def learn(self, key: ChunkKey, found: ChunkSensitivity, now: float) -> None:
        """A chunk was measured (again)."""
        self._book.learn(found)
        if self._levels is not None:
            self._levels.learn(found.density)
        entry = self._entries.setdefault(key, _Entry(used=now))
        entry.sensitivity = found if entry.sensitivity is None else merged(entry.sensitivity, found)
        self._recount(entry, now)  # also chunks that are still to be coded: they will want their share

    def found(self, context: Context, key: ChunkKey, meta: ChunkMeta, nbytes: int) -> None:
        """At start: the chunk is on DISK, as an earlier run coded it."""
        if meta.precision == LOSSLESS or not self._settings.measure:
            return
        entry = self._entries[key] = _Entry(sensitivity=meta.sensitivity, persisted=meta.sensitivity)
        if meta.sensitivity is not None:
            self._book.learn(meta.sensitivity)
        self._add(key, entry, context.id, meta.precision, nbytes, context.idle_since)

    def stored(self, owner: ContextId, target: ChunkTarget, nbytes: int, now: float) -> None:
        """A chunk was coded."""
        if target.stop - target.start < CHUNK_TOKENS or not self._settings.measure:
            return
        entry = self._entries.setdefault(target.key, _Entry())
        assert not entry.nbytes, "a chunk is coded once"
        self._add(target.key, entry, owner, target.precision, nbytes, now)

    def _add(
        self, key: ChunkKey, entry: _Entry, owner: ContextId, precision: Precision, nbytes: int, used: float
    ) -> None:
        """Take a coded chunk, last used at ``used``, into the bytes that the budget is for."""
        self.stored_chunks += 1
        self.nbytes += nbytes
        self._hand.append(key)
        self._unvisited = len(self._hand)
        entry.owner, entry.precision, entry.nbytes, entry.used = owner, precision, nbytes, used
        self._recount(entry, used)

    def lowered(self, key: ChunkKey, precision: Precision, nbytes: int, now: float) -> None:
        """A stored chunk was coded again with fewer bits."""
        entry = self._entries[key]
        self.nbytes += nbytes - entry.nbytes
        entry.precision, entry.nbytes = precision, nbytes
        self._recount(entry, now)

    def owner(self, key: ChunkKey) -> ContextId:
        """The context in whose name a stored chunk was coded."""
        return self._entries[key].owner

    def touch(self, keys: Iterable[ChunkKey], now: float) -> None:
        """The chunks are in use."""
        if self._entries:
            for key in keys:
                if (entry := self._entries.get(key)) is not None:
                    entry.used = now

    def forget(self, key: ChunkKey) -> None:
        """The chunk has no copy any more, or no context."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if entry.demand is not None:
            self._book.remove(entry.demand)
        if entry.nbytes:
            self.stored_chunks -= 1
            self.nbytes -= entry.nbytes

    # -- what is kept on DISK

    def changed_sensitivity(self, key: ChunkKey) -> ChunkSensitivity | None:
        """The chunk's sensitivity if it has changed so much that DISK should have it anew; it counts as persisted."""
        entry = self._entries[key]
        if entry.sensitivity is None or not _has_changed(entry.sensitivity, entry.persisted):
            return None
        return self.persist_sensitivity(key)

    def persist_sensitivity(self, key: ChunkKey) -> ChunkSensitivity | None:
        """What is to be kept with the chunk on DISK, if anything; it counts as persisted from now on."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.persisted = entry.sensitivity
        return entry.persisted

    # -- fewer bits

    def to_lower(self, readiness: Callable[[ChunkKey], Readiness], now: float) -> list[tuple[ChunkKey, Precision]]:
        """Chunks that should be coded again with fewer bits, of the next few under the hand; none within the budget.

        A chunk that is not ready, but will be, does not count as visited.
        """
        if self.nbytes <= self.budget or not self._unvisited or self._levels is not None:
            return []
        price, found = self._price(), []
        visits = min(_VISITS, self._unvisited, len(self._hand))
        self._unvisited -= visits
        for _ in range(visits):
            if (visited := self._advance_clock_hand(now)) is None:
                continue
            key, entry, counted = visited
            wanted = self._book.choose(counted, price, key)
            lower = Precision(min(wanted.k, entry.precision.k), min(wanted.v, entry.precision.v))
            if self._size(lower) > (1 - _WORTH) * entry.nbytes:
                continue
            match readiness(key):
                case Readiness.NOW:
                    found.append((key, lower))
                case Readiness.LATER:
                    self._unvisited += 1
                case Readiness.NEVER:
                    pass
        return found

    def _advance_clock_hand(self, now: float) -> tuple[ChunkKey, _Entry, ChunkDemand] | None:
        """Move the hand past one chunk, which is counted anew at its present heat; None if it is stored no more."""
        key = self._hand.popleft()
        entry = self._entries.get(key)
        if entry is None or not entry.nbytes:
            return None
        self._hand.append(key)
        return key, entry, self._recount(entry, now)

    def _price(self) -> Price:
        return self._book.price(int(self._book.chunks * self._chunk_budget))

    def _recount(self, entry: _Entry, now: float) -> ChunkDemand:
        """Count the chunk in the price book at what it is worth now."""
        if entry.demand is not None:
            self._book.remove(entry.demand)
        heat = max(_COLDEST, 2.0 ** (-max(0.0, now - entry.used) / _HALF_LIFE_S))
        entry.demand = demand(entry.sensitivity, heat)
        self._book.add(entry.demand)
        return entry.demand

    def check(self) -> list[str]:
        """Problems found; empty when the books balance."""
        stored = [e for e in self._entries.values() if e.nbytes]
        problems = []
        if (len(stored), sum(e.nbytes for e in stored)) != (self.stored_chunks, self.nbytes):
            problems.append(f"bits: {self.stored_chunks} chunks of {self.nbytes} bytes are not those in the entries")
        if self._book.chunks != sum(e.demand is not None for e in self._entries.values()):
            problems.append(f"bits: the price book counts {self._book.chunks} chunks")
        return problems


def _has_changed(now: ChunkSensitivity, before: ChunkSensitivity | None) -> bool:
    """Whether a sensitivity has moved so far that bits would be allocated otherwise."""
    if before is None:
        return True
    pairs = ((now.k, before.k), (now.v, before.v))
    return any(max(a, b) > _CHANGED * min(a, b) for a, b in pairs)
