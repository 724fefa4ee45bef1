"""Chunks of the POOL that are coded again with fewer bits, from the form they have there.

Law: one lowering at a time; its chunks are pinned, and written to DISK only afterwards. What DISK has of them is the
old form, so it is dropped first.
"""

from __future__ import annotations

from collections.abc import Callable

from llmaas.errors import PolicyBug
from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import Action, DropDisk, LowerChunks
from llmaas.planner.bit_budget import BitBooks, Readiness
from llmaas.planner.events import Lowered, Stored
from llmaas.planner.tally import Tally
from llmaas.planner.write_back import Writes
from llmaas.records import ChunkKey


class Lowering:
    """Begins lowerings when all chunks together have more bytes than they may (``BitBooks``)."""

    def __init__(
        self, ledger: Ledger, bits: BitBooks, writes: Writes, next_id: Callable[[], int], tally: Tally
    ) -> None:
        self._ledger, self._bits, self._writes = ledger, bits, writes
        self._next_id, self._tally = next_id, tally
        self._under_way: LowerChunks | None = None

    @property
    def idle(self) -> bool:
        return self._under_way is None

    def pump(self, now: float, out: list[Action]) -> None:
        """Begin to code some chunks again if there is need and nothing under way."""
        if self._under_way is None and (chunks := self._bits.to_lower(self._readiness, now)):
            for key, _ in chunks:
                self._ledger.pin(key)
            self._under_way = LowerChunks(self._next_id(), tuple(chunks))
            self._writes.hold({key for key, _ in chunks})
            out.append(self._under_way)

    def _readiness(self, key: ChunkKey) -> Readiness:
        chunk = self._ledger.chunk(key)
        if chunk.pool is Copy.ABSENT:
            return Readiness.NEVER
        if chunk.moving or chunk.pins:
            return Readiness.LATER
        return Readiness.NOW if chunk.refs else Readiness.NEVER

    def lowered(self, event: Lowered, now: float, out: list[Action]) -> list[ChunkKey]:
        """A lowering ended: its chunks, which have come to rest."""
        action, self._under_way = self._under_way, None
        if action is None or action.lower != event.lower:
            raise PolicyBug(f"lowering {event.lower} ended but was not under way")
        self._writes.hold(set())
        for (key, precision), outcome in zip(action.chunks, event.outcomes, strict=True):
            self._ledger.unpin(key)
            if isinstance(outcome, Stored):
                if self._ledger.chunk(key).disk is Copy.PRESENT:
                    self._ledger.drop_disk(key)
                    out.append(DropDisk((key,)))
                self._ledger.shrink_pool(key, outcome.nbytes)
                self._bits.lowered(key, precision, outcome.nbytes, now)
                self._tally.chunks_lowered += 1
            self._writes.want([(self._bits.owner(key), key)])
        return [key for key, _ in action.chunks]
