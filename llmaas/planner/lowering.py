"""Lowering: chunks of the POOL are coded again with fewer bits, from the form that they have there.

Law: the bit budget proposes, this carries out, one lowering at a time. Its chunks are pinned, and written to DISK only
afterwards. The copy on DISK is the old form, so it is dropped before the new one counts.
"""

from __future__ import annotations

from collections.abc import Callable

from llmaas.errors import PolicyBug
from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import Action, DropDisk, LowerChunks
from llmaas.planner.bit_budget import BitBudget, Readiness
from llmaas.planner.events import Lowered, Stored
from llmaas.planner.pool_books import PoolBooks
from llmaas.planner.tally import Tally
from llmaas.planner.write_back import WriteBack
from llmaas.policies.wear import WearPolicy
from llmaas.records import ChunkKey


class Lowering:
    """Begins a lowering when all chunks together have more bytes than the budget."""

    def __init__(
        self,
        ledger: Ledger,
        books: PoolBooks,
        bits: BitBudget,
        wear: WearPolicy,
        writes: WriteBack,
        tally: Tally,
        next_id: Callable[[], int],
    ) -> None:
        self._ledger, self._books, self._bits, self._wear, self._writes = ledger, books, bits, wear, writes
        self._tally, self._next_id = tally, next_id
        self._under_way: LowerChunks | None = None

    @property
    def idle(self) -> bool:
        return self._under_way is None

    def pump(self, now: float, out: list[Action]) -> None:
        """Begin to code some chunks again if the budget asks for it and nothing is under way."""
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
        if chunk.disk is Copy.PRESENT and not self._bits.is_exceeded(self._wear.slack):
            return Readiness.NEVER  # it would be written again
        if chunk.moving or chunk.pins:
            return Readiness.LATER
        return Readiness.NOW if chunk.refs else Readiness.NEVER

    def lowered(self, event: Lowered, now: float, out: list[Action]) -> None:
        """The lowering ended."""
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
            self._writes.enqueue([(self._bits.owner(key), key)])
        self._books.sweep([key for key, _ in action.chunks], out)
