"""The bit books: what is known of every chunk's sensitivity, and with how many bits it is coded.

Law: work per event does not grow with the number of chunks. A chunk's precision is what the present price makes of its
sensitivity (``policies.bit_price``), decided when it is first coded; later it may only fall, from its stored form.

Bytes are one budget for all contexts, so many bits per stored value. When it is exceeded, a hand goes round the stored
chunks, as a clock's does, and proposes those for which the price now pays less than they have: tolerant ones, and
those of contexts that nobody has used for long.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from llmaas.kvchunks.codec.sensitivity import merged
from llmaas.planner.actions import ChunkTarget
from llmaas.planner.context import Context
from llmaas.planner.settings import PlannerSettings
from llmaas.policies.bit_price import ChunkDemand, Price, PriceBook, demand
from llmaas.records import CHUNK_TOKENS, LOSSLESS, ChunkKey, ChunkMeta, ChunkSensitivity, ContextId, Precision

_HALF_LIFE_S = 3600.0
"""After so long without use, an error in a chunk counts half: the context may never come back."""
_COLDEST = 1 / 64
_PRIOR = (1.6e-4, 1.8e-4)
"""Sensitivities of K and V to expect before any was measured: SmolLM2-135M's mean. Only their ratio counts."""
NOBODY = ContextId("")
_LOOK = 16
"""Chunks that the hand passes at an event."""
_COOL = 4
"""Stored chunks whose heat is brought up to date for each one that is coded."""
_NEWS = 1.5
"""Factor by which a sensitivity must have moved for the index to be written again."""
_WORTH = 0.2
"""Of its bytes a chunk must lose to be coded again, since it is then written again, too."""


class Readiness(enum.Enum):
    """Whether a stored chunk can be coded again, from the form that the POOL has."""

    NOW = "now"
    LATER = "later"
    """It is moving or pinned."""
    NEVER = "never"
    """It is not in the POOL, or no context contains it."""


@dataclass(slots=True, eq=False)
class _Entry:
    """``nbytes`` 0: known, but not stored."""

    owner: ContextId = NOBODY
    sensitivity: ChunkSensitivity | None = None
    precision: Precision = LOSSLESS
    nbytes: int = 0
    used: float = 0.0
    demand: ChunkDemand | None = None
    noted: ChunkSensitivity | None = None
    """What is on DISK, or on its way there, of ``sensitivity``."""


class BitBooks:
    """Precisions under one budget. ``spending`` "uniform" makes it answer ``settings.precision`` and keep nothing."""

    def __init__(self, settings: PlannerSettings, encoded_size: Callable[[int, Precision], int]) -> None:
        self._settings = settings
        self._size = cache(lambda precision: encoded_size(CHUNK_TOKENS, precision))
        self._book = PriceBook(self._size, _PRIOR)
        g = settings.geometry
        self._chunk_budget = settings.bits * CHUNK_TOKENS * g.n_layer * (g.k_dim + g.v_dim) / 8
        self._entries: dict[ChunkKey, _Entry] = {}
        self._hand: deque[ChunkKey] = deque()
        self._unseen = 0
        """Chunks that the hand has not passed since the last one came; after a round there is nothing more to find."""
        self.nbytes = 0
        """Of the coded full chunks that are stored."""
        self.stored_chunks = 0

    @property
    def budget(self) -> int:
        """Bytes for the chunks that are stored now."""
        return int(self.stored_chunks * self._chunk_budget)

    def choose(self, key: ChunkKey, n_tokens: int, now: float) -> Precision:
        """Precision for a chunk that is about to be coded from computed values."""
        if n_tokens < CHUNK_TOKENS:
            return LOSSLESS
        if not self._settings.measure:
            return self._settings.precision
        for _ in range(min(_COOL, len(self._hand))):
            self._pass(now)
        entry = self._entries.setdefault(key, _Entry())
        entry.used = now
        return self._book.choose(self._count(entry, now), self._price(), key)

    def learn(self, key: ChunkKey, found: ChunkSensitivity, now: float) -> None:
        """A chunk was measured (again)."""
        self._book.learn(found)
        entry = self._entries.setdefault(key, _Entry(used=now))
        entry.sensitivity = found if entry.sensitivity is None else merged(entry.sensitivity, found)
        self._count(entry, now)  # also those that are still to be coded: they will want their share

    def news(self, key: ChunkKey) -> ChunkSensitivity | None:
        """What is to be kept anew with the chunk on DISK, if that has changed much."""
        entry = self._entries[key]
        if entry.sensitivity is None or not _is_news(entry.sensitivity, entry.noted):
            return None
        return self.note(key)

    def note(self, key: ChunkKey) -> ChunkSensitivity | None:
        """What is to be kept with the chunk on DISK."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.noted = entry.sensitivity
        return entry.noted

    def found(self, context: Context, key: ChunkKey, notes: ChunkMeta, nbytes: int) -> None:
        """At start: the chunk is on DISK, as an earlier run coded it."""
        if notes.precision == LOSSLESS or not self._settings.measure:
            return
        entry = self._entries[key] = _Entry(sensitivity=notes.sensitivity, noted=notes.sensitivity)
        if notes.sensitivity is not None:
            self._book.learn(notes.sensitivity)
        self._keep(key, entry, context.id, notes.precision, nbytes, context.idle_since)

    def stored(self, owner: ContextId, target: ChunkTarget, nbytes: int, now: float) -> None:
        """A chunk was coded."""
        if target.stop - target.start < CHUNK_TOKENS or not self._settings.measure:
            return
        entry = self._entries.setdefault(target.key, _Entry())
        assert not entry.nbytes, "a chunk is coded once"
        self._keep(target.key, entry, owner, target.precision, nbytes, now)

    def _keep(
        self, key: ChunkKey, entry: _Entry, owner: ContextId, precision: Precision, nbytes: int, used: float
    ) -> None:
        """Take a coded chunk, last used at ``used``, into the bytes that the budget is for."""
        self.stored_chunks += 1
        self.nbytes += nbytes
        self._hand.append(key)
        self._unseen = len(self._hand)
        entry.owner, entry.precision, entry.nbytes, entry.used = owner, precision, nbytes, used
        self._count(entry, used)

    def lowered(self, key: ChunkKey, precision: Precision, nbytes: int, now: float) -> None:
        """A stored chunk was coded again with fewer bits."""
        entry = self._entries[key]
        self.nbytes += nbytes - entry.nbytes
        entry.precision, entry.nbytes = precision, nbytes
        self._count(entry, now)

    def owner(self, key: ChunkKey) -> ContextId:
        """The context in whose name a stored chunk was coded."""
        return self._entries[key].owner

    def touch(self, key: ChunkKey, now: float) -> None:
        if (entry := self._entries.get(key)) is not None:
            entry.used = now

    def forget(self, key: ChunkKey) -> None:
        """The chunk has no copy and no context any more."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if entry.demand is not None:
            self._book.remove(entry.demand)
        if entry.nbytes:
            self.stored_chunks -= 1
            self.nbytes -= entry.nbytes

    def to_lower(self, readiness: Callable[[ChunkKey], Readiness], now: float) -> list[tuple[ChunkKey, Precision]]:
        """Chunks that should be coded again with fewer bits, of the next few under the hand; none within the budget.

        A chunk that is not ready, but will be, does not count as looked at.
        """
        if self.nbytes <= self.budget or not self._unseen:
            return []
        price, found = self._price(), []
        look = min(_LOOK, self._unseen, len(self._hand))
        self._unseen -= look
        for _ in range(look):
            if (passed := self._pass(now)) is None:
                continue
            key, entry, counted = passed
            wanted = self._book.choose(counted, price, key)
            lower = Precision(min(wanted.k, entry.precision.k), min(wanted.v, entry.precision.v))
            if self._size(lower) > (1 - _WORTH) * entry.nbytes:
                continue
            match readiness(key):
                case Readiness.NOW:
                    found.append((key, lower))
                case Readiness.LATER:
                    self._unseen += 1
                case Readiness.NEVER:
                    pass
        return found

    def check(self) -> list[str]:
        stored = [e for e in self._entries.values() if e.nbytes]
        problems = []
        if (len(stored), sum(e.nbytes for e in stored)) != (self.stored_chunks, self.nbytes):
            problems.append(f"bits: {self.stored_chunks} chunks of {self.nbytes} bytes are not those in the entries")
        if self._book.chunks != sum(e.demand is not None for e in self._entries.values()):
            problems.append(f"bits: the price book counts {self._book.chunks} chunks")
        return problems

    def _pass(self, now: float) -> tuple[ChunkKey, _Entry, ChunkDemand] | None:
        """Move the hand past one stored chunk, which is counted at its present heat; None if that has gone."""
        key = self._hand.popleft()
        entry = self._entries.get(key)
        if entry is None or not entry.nbytes:
            return None
        self._hand.append(key)
        return key, entry, self._count(entry, now)

    def _price(self) -> Price:
        return self._book.price(int(self._book.chunks * self._chunk_budget))

    def _count(self, entry: _Entry, now: float) -> ChunkDemand:
        """Count the chunk at what it is worth today."""
        if entry.demand is not None:
            self._book.remove(entry.demand)
        heat = max(_COLDEST, 2.0 ** (-max(0.0, now - entry.used) / _HALF_LIFE_S))
        entry.demand = demand(entry.sensitivity, heat)
        self._book.add(entry.demand)
        return entry.demand


def _is_news(now: ChunkSensitivity, before: ChunkSensitivity | None) -> bool:
    """Whether a sensitivity has moved so far that bits would be shared out otherwise."""
    if before is None:
        return True
    pairs = ((now.k, before.k), (now.v, before.v))
    return any(max(a, b) > _NEWS * min(a, b) for a, b in pairs)
