"""Write-back: which chunks of the POOL are written to DISK, and when.

Law: a full chunk that is worth its bytes is written once, soon after it was coded, in runs of neighbours; from then on
its eviction is free. What cannot be written, or is not worth it, is tried again at a later call, and may be evicted
meanwhile: its tokens remain.

States of whole sequences are written at the end of each call, in place of the one before.

The last chunk of a context is mostly not full, and each call replaces it by a longer one. So it is not written while
the POOL has room for it (``last_chunks``); when it has not, and when the service stops, those of the contexts that were
used last: otherwise up to 63 tokens of each would be computed again. A wear policy may want more of them. Then each is
written when its context has left CELLS, when the POOL runs out of clean chunks, and when the service stops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from llmaas.errors import PolicyBug
from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import Action, ChunkTarget, StopWrite, WriteChunks
from llmaas.planner.bit_budget import BitBudget
from llmaas.planner.chunk_worth import ChunkWorth
from llmaas.planner.context import Context
from llmaas.planner.disk_quota import DiskQuota
from llmaas.planner.events import Stored, Written
from llmaas.planner.last_chunks import LastChunks
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.tally import Tally
from llmaas.policies.wear import WearPolicy
from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextId

_LATEST = 16
"""Last chunks that are written when the service stops: a few megabytes of flash for each restart at most."""

OwnedChunk = tuple[ContextId, ChunkKey]
"""A chunk, and the context in whose name it is written."""


class WriteBack:
    """What waits to be written, is being written, or could not be."""

    def __init__(
        self,
        settings: PlannerSettings,
        ledger: Ledger,
        disk: DiskQuota,
        bits: BitBudget,
        wear: WearPolicy,
        worth: ChunkWorth,
        last: LastChunks,
        tally: Tally,
        next_id: Callable[[], int],
    ) -> None:
        self._states = settings.state is not None
        self._most, self._ledger, self._disk, self._bits = settings.write_batch, ledger, disk, bits
        self._wear, self._worth, self._kept, self._tally, self._next_id = wear, worth, last, tally, next_id
        self._waiting: deque[OwnedChunk] = deque()
        self._last: dict[ContextId, ChunkKey] = {}
        """The partial last chunks of contexts in CELLS, which are written when those leave."""
        self._left: list[OwnedChunk] = []
        """Those of contexts that have left: written when a call ends, not while a call waits for the disk."""
        self._under_way: WriteChunks | None = None
        self._failed: list[OwnedChunk] = []
        """While there are any, chunks without a DISK copy may be evicted too."""
        self._abandoned: set[ChunkKey] = set()
        """Partial last chunks that may leave the POOL unwritten, since CELLS have what they hold."""
        self._held: set[ChunkKey] = set()
        """Chunks that are being lowered; they are written afterwards."""
        self._wanted = False
        """The POOL needs room: for a policy that does not write ahead of that."""
        self._ending = False

    @property
    def idle(self) -> bool:
        return self._under_way is None and not (self._waiting and self._may_write)

    @property
    def _may_write(self) -> bool:
        return self._wear.ahead or self._wanted or self._ending

    @property
    def under_way(self) -> bool:
        return self._under_way is not None

    # -- chunks that are to be written

    def saved(self, context: ContextId, target: ChunkTarget) -> None:
        """A chunk was coded into the POOL."""
        if self._states or target.stop - target.start == CHUNK_TOKENS:
            self._waiting.append((context, target.key))
        elif not self._wear.writes_last:
            self._waiting.extend(self._kept.add(context, target.key))
        else:
            self.left_cells(context)  # the last chunk before this one, if forks still contain it
            self._last[context] = target.key

    def enqueue(self, chunks: Iterable[OwnedChunk]) -> None:
        self._waiting.extend(chunks)

    def left_cells(self, context: ContextId) -> None:
        """The context has left CELLS: its last chunk will not be replaced soon."""
        if (key := self._last.pop(context, None)) is not None:
            self._left.append((context, key))

    def closed(self, context: ContextId) -> ChunkKey | None:
        """The context is no more; its last chunk, if that was not written yet."""
        return self._last.pop(context, None)

    def flush(self) -> None:
        """Write what was held back: the POOL needs clean chunks."""
        self._wanted = True
        for context in list(self._last):
            self.left_cells(context)
        self._enqueue_left()

    def finish(self, last: Mapping[ChunkKey, ContextId]) -> None:
        """Write everything that is to be on DISK: the service stops. ``last``: the last chunk of each context."""
        self._ending = True
        self.flush()
        self.enqueue((last[key], key) for key in self._kept.take_latest(_LATEST) if key in last)

    def abandon(self, out: list[Action]) -> None:
        """The POOL must shrink at once: do not wait for what is to be written or is being written.

        It counts as failed, so that it may be evicted. Of last chunks of contexts in CELLS nothing is lost by it now.
        """
        if self._under_way is not None:
            out.append(StopWrite(self._under_way.write))
        self._failed.extend(self._waiting)
        self._waiting.clear()
        self._abandoned = {key for key in (*self._abandoned, *self._last.values()) if key in self._ledger}
        self._last.clear()

    def hold(self, keys: set[ChunkKey]) -> None:
        """These chunks, and no others, are being lowered: write none of them now."""
        self._held = keys

    def may_lose(self, key: ChunkKey) -> bool:
        """Whether a chunk without a copy on DISK may leave the POOL all the same."""
        return bool(self._failed) or key in self._abandoned or self._disk.refused(key)

    def put_off(self, chunks: Iterable[OwnedChunk]) -> None:
        """These could not be written, or the store has lost them: try again later."""
        self._failed.extend(chunks)

    def retry(self, context: Context) -> None:
        """A call of the context has returned: a good moment for what was put off, and to look for room again."""
        self._enqueue_left()
        self._waiting.extend((context.id, key) for key in self._disk.refused_of(context))
        if self._failed:
            self._waiting.extend(self._failed)
            self._failed.clear()
            self._disk.found_room()

    def _enqueue_left(self) -> None:
        self._waiting.extend(self._left)
        self._left.clear()

    # -- writes

    def pump(self, out: list[Action]) -> bool:
        """Begin one write of chunks of one context if none is under way; True if the quota refused some."""
        self._disk.shrink(out)
        any_refused = False
        while self._waiting and self._under_way is None and self._may_write:
            context = self._waiting[0][0]
            batch, refused = self._disk.admit(self._take_writable(context), context, self._most, out)
            any_refused = any_refused or refused
            if batch:
                for key in batch:
                    self._wear.wrote(self._ledger.pin(key).pool_bytes)
                sensitivities = tuple(map(self._bits.persist_sensitivity, batch))
                self._under_way = WriteChunks(self._next_id(), context, tuple(batch), sensitivities)
                out.append(self._under_way)
        return any_refused

    def _take_writable(self, context: ContextId) -> Iterator[ChunkKey]:
        """Take the chunks of the context from the front of the queue; yields those that can be written now."""
        while self._waiting and self._waiting[0][0] == context:
            key = self._waiting.popleft()[1]
            if key in self._ledger and key not in self._held:
                chunk = self._ledger.chunk(key)
                if not chunk.refs or chunk.pool is not Copy.PRESENT or chunk.disk is not Copy.ABSENT:
                    continue
                if key in self._kept:
                    continue
                if self._worth.is_worth(key):
                    yield key
                else:
                    self._disk.refuse(key)

    def written(self, event: Written, out: list[Action]) -> list[ChunkKey]:
        """A write ended: its chunks, which have come to rest."""
        write, self._under_way = self._under_way, None
        self._wanted = False  # whoever still lacks room asks again
        if write is None or write.write != event.write:
            raise PolicyBug(f"write {event.write} ended but was not under way")
        failed: list[ChunkKey] = []
        for key, outcome in zip(write.keys, event.outcomes, strict=True):
            self._ledger.unpin(key)
            if isinstance(outcome, Stored):
                self._ledger.arrive_disk(key, outcome.nbytes)
                self._tally.chunks_written += 1
                self._tally.bytes_written += outcome.nbytes
                self._disk.found_room()
                self._disk.drop_earlier(write.context, out)
            else:
                self._ledger.fail_disk(key)
                failed.append(key)
                self._tally.writes_failed += 1
        again = event.full and self._disk.disk_is_full(failed, write.context, out)
        (self._waiting if again else self._failed).extend((write.context, key) for key in failed)
        return list(write.keys)
