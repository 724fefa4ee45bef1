"""Swap-out, second half: which chunks of the POOL are written to DISK, and when.

Law: a chunk is written once, soon after it was coded, in runs of neighbours; from then on its eviction is free. What
cannot be written is tried again at a later call, and may be evicted meanwhile: its tokens remain.

The last chunk of a context is mostly not full, and each call replaces it by a longer one. So it is written only when
its context has left CELLS, when the POOL runs out of clean chunks, and when the service stops: until then CELLS have
what it holds, and a crash costs fewer than 64 tokens of computing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from llmaas.errors import PolicyBug
from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import Action, ChunkTarget, StopWrite, WriteChunks
from llmaas.planner.bit_budget import BitBooks
from llmaas.planner.context import Context
from llmaas.planner.disk_quota import DiskQuota
from llmaas.planner.events import Stored, Written
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.tally import Tally
from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextId

Wanted = tuple[ContextId, ChunkKey]


class Writes:
    """What waits to be written, is being written, or could not be."""

    def __init__(
        self,
        settings: PlannerSettings,
        ledger: Ledger,
        disk: DiskQuota,
        bits: BitBooks,
        next_id: Callable[[], int],
        tally: Tally,
    ) -> None:
        self._settings, self._ledger, self._disk, self._bits = settings, ledger, disk, bits
        self._next_id, self._tally = next_id, tally
        self._waiting: deque[Wanted] = deque()
        self._last: dict[ContextId, ChunkKey] = {}
        """The partial last chunks of contexts in CELLS, which are written when those leave."""
        self._left: list[Wanted] = []
        """Those of contexts that have left: written when a call ends, not while somebody waits for the disk."""
        self._writing: WriteChunks | None = None
        self._failed: list[Wanted] = []
        """While there are any, chunks without a DISK copy may be evicted too."""
        self._forsaken: set[ChunkKey] = set()
        self._held: set[ChunkKey] = set()
        """Chunks that are being lowered; they are written afterwards."""

    @property
    def idle(self) -> bool:
        return not self._waiting and self._writing is None

    @property
    def under_way(self) -> bool:
        return self._writing is not None

    def saved(self, context: ContextId, target: ChunkTarget) -> None:
        """A chunk was coded into the POOL."""
        if target.stop - target.start == CHUNK_TOKENS:
            self._waiting.append((context, target.key))
        else:
            self.left_cells(context)  # the one before, if forks still contain it
            self._last[context] = target.key

    def want(self, wanted: Iterable[Wanted]) -> None:
        self._waiting.extend(wanted)

    def left_cells(self, context: ContextId) -> None:
        """Its last chunk stays as it is for long."""
        if (key := self._last.pop(context, None)) is not None:
            self._left.append((context, key))

    def closed(self, context: ContextId) -> ChunkKey | None:
        """The context is no more; its last chunk, if that was not written yet."""
        return self._last.pop(context, None)

    def flush(self) -> None:
        """Write everything, be it for the last time or because the POOL needs what is clean."""
        for context in list(self._last):
            self.left_cells(context)
        self._waiting.extend(self._left)
        self._left.clear()

    def forsake(self, out: list[Action]) -> None:
        """The POOL must shrink at once: let go of what waits to be written, and of what is being written.

        Of last chunks of contexts in CELLS nothing is lost by it now.
        """
        if self._writing is not None:
            out.append(StopWrite(self._writing.write))
        self._failed.extend(self._waiting)
        self._waiting.clear()
        self._forsaken = {key for key in (*self._forsaken, *self._last.values()) if key in self._ledger}
        self._last.clear()

    def hold(self, keys: set[ChunkKey]) -> None:
        self._held = keys

    def given_up(self, key: ChunkKey) -> bool:
        """Whether a chunk without a copy on DISK may leave the POOL all the same."""
        return bool(self._failed) or key in self._forsaken or self._disk.refused(key)

    def failed(self, wanted: Iterable[Wanted]) -> None:
        """These could not be written, or the store has lost them: try again later."""
        self._failed.extend(wanted)

    def try_again(self, context: Context) -> None:
        """A call of the context has returned: a good moment for what was put off, and to look for room again."""
        self._waiting.extend(self._left)
        self._left.clear()
        self._waiting.extend((context.id, key) for key in self._disk.missed(context))
        if self._failed:
            self._waiting.extend(self._failed)
            self._failed.clear()
            self._disk.found_room()

    def pump(self, out: list[Action]) -> bool:
        """Begin one write of chunks of one context if none is under way; True if the quota refused some."""
        self._disk.shrink(out)
        refused = False
        while self._waiting and self._writing is None:
            context = self._waiting[0][0]
            batch: list[ChunkKey] = []
            while self._waiting and self._waiting[0][0] == context and len(batch) < self._settings.write_batch:
                key = self._waiting.popleft()[1]
                if not self._writable(key):
                    continue
                if not self._disk.admit(key, context):
                    refused = True
                else:
                    self._ledger.begin_disk(key)
                    self._ledger.pin(key)
                    batch.append(key)
            self._disk.flush(out)
            if batch:
                self._writing = WriteChunks(self._next_id(), context, tuple(batch), tuple(map(self._bits.note, batch)))
                out.append(self._writing)
        return refused

    def _writable(self, key: ChunkKey) -> bool:
        if key not in self._ledger or key in self._held:
            return False
        chunk = self._ledger.chunk(key)
        return chunk.refs > 0 and chunk.pool is Copy.PRESENT and chunk.disk is Copy.ABSENT

    def written(self, event: Written, out: list[Action]) -> list[ChunkKey]:
        """A write ended: its chunks, which have come to rest."""
        write = self._writing
        if write is None or write.write != event.write:
            raise PolicyBug(f"write {event.write} ended but was not under way")
        self._writing = None
        failed: list[ChunkKey] = []
        for key, outcome in zip(write.keys, event.outcomes, strict=True):
            self._ledger.unpin(key)
            if isinstance(outcome, Stored):
                self._ledger.arrive_disk(key, outcome.nbytes)
                self._tally.chunks_written += 1
                self._tally.bytes_written += outcome.nbytes
                self._disk.found_room()
            else:
                self._ledger.fail_disk(key)
                failed.append(key)
                self._tally.writes_failed += 1
        again = event.full and self._disk.disk_is_full(failed, write.context, out)
        (self._waiting if again else self._failed).extend((write.context, key) for key in failed)
        return list(write.keys)
