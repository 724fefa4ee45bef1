"""Last chunks that are in the POOL and go nowhere else until the service stops: each is soon replaced by a longer one.

Law: they are the last to leave the POOL, since what they hold must be computed again. They may fill a part of it; of
more than that, those of the contexts that were used longest ago are let go, and are then like any other chunk: written
to DISK, if they are worth that, and evicted.
"""

from __future__ import annotations

from collections import OrderedDict

from llmaas.kvchunks.ledger import Ledger
from llmaas.records import ChunkKey, ContextId

_SHARE = 0.5
"""Of the POOL. For the room of one last chunk, two full ones could stay that are on DISK as well, and reading these is
ten times as fast as computing that one; but most contexts are not used again soon."""


class LastChunks:
    """By the time of their saving, which is when their context was used."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kept: OrderedDict[ChunkKey, tuple[ContextId, int]] = OrderedDict()
        """The context that has saved each, and its bytes."""
        self._kept_bytes = 0

    def add(self, context: ContextId, key: ChunkKey) -> list[tuple[ContextId, ChunkKey]]:
        """A last chunk of the context was coded into the POOL; those that are let go for it."""
        self.remove(key)
        nbytes = self._ledger.chunk(key).pool_bytes
        self._kept[key] = context, nbytes
        self._kept_bytes += nbytes
        gone = []
        while self._kept_bytes > _SHARE * self._ledger.pool_budget:
            gone.append(self.take_oldest())
        return gone

    def remove(self, key: ChunkKey) -> None:
        """A chunk has left the POOL."""
        self._kept_bytes -= self._kept.pop(key, (None, 0))[1]

    def take_oldest(self) -> tuple[ContextId, ChunkKey]:
        """Of the context that was used longest ago: it is like any other chunk now. Raises KeyError if there is
        none."""
        key, (user, nbytes) = self._kept.popitem(last=False)
        self._kept_bytes -= nbytes
        return user, key

    def take_latest(self, most: int) -> list[ChunkKey]:
        """Of the contexts that were used last, so many at most: these chunks go to DISK after all."""
        found = list(reversed(self._kept))[:most]
        for key in found:
            self.remove(key)
        return found

    def __bool__(self) -> bool:
        return bool(self._kept)

    def __contains__(self, key: object) -> bool:
        return key in self._kept
