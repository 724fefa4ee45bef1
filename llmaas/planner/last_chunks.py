"""Last chunks that are in the POOL and go nowhere else until the service stops: each is soon replaced by a longer one.

Law: they are the last to leave the POOL, since what they hold must be computed again. They may fill a part of it; of
more than that, those of the contexts that were used longest ago leave like any chunk that is safe on DISK.
"""

from __future__ import annotations

from collections import OrderedDict

from llmaas.kvchunks.ledger import Ledger
from llmaas.records import ChunkKey

_SHARE = 0.5
"""Of the POOL. For the room of one last chunk, two full ones could stay that are on DISK as well, and reading these is
ten times as fast as computing that one; but most contexts are not used again soon."""


class LastChunks:
    """By the time of their saving, which is when their context was used."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kept: OrderedDict[ChunkKey, int] = OrderedDict()
        """Bytes of each."""
        self._kept_bytes = 0
        self._beyond: set[ChunkKey] = set()
        """Those beyond the share."""

    def add(self, key: ChunkKey) -> None:
        """A last chunk was coded into the POOL."""
        nbytes = self._ledger.chunk(key).pool_bytes
        self._kept[key] = nbytes
        self._kept_bytes += nbytes
        while self._kept_bytes > _SHARE * self._ledger.pool_budget:
            old, nbytes = self._kept.popitem(last=False)
            self._kept_bytes -= nbytes
            self._beyond.add(old)

    def remove(self, key: ChunkKey) -> None:
        """A chunk has left the POOL."""
        self._kept_bytes -= self._kept.pop(key, 0)
        self._beyond.discard(key)

    def take_latest(self, most: int) -> list[ChunkKey]:
        """Of the contexts that were used last, so many at most: these chunks go to DISK after all."""
        found = list(reversed(self._kept))[:most]
        for key in found:
            self.remove(key)
        return found

    def is_beyond(self, key: ChunkKey) -> bool:
        return key in self._beyond

    def __bool__(self) -> bool:
        return bool(self._kept or self._beyond)

    def __contains__(self, key: object) -> bool:
        return key in self._kept or key in self._beyond
