"""The POOL's books: which contexts contain a chunk, and how copies of it come and go.

Law: every move of a copy has two ends. ``begin_save``, ``begin_load`` and ``begin_fetch`` reserve its bytes and pin it;
the matching ``end_`` says what came of it, unpins it, and drops the copies that no context needs any more. A damaged
copy is given up, never an error: the tokens remain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import (
    Action,
    ChunkSource,
    ChunkSpan,
    DropDisk,
    DropPool,
    FetchChunks,
    LoadChunks,
    SaveChunks,
)
from llmaas.planner.bit_budget import NOBODY, BitBudget
from llmaas.planner.context import Context
from llmaas.planner.disk_quota import DiskQuota
from llmaas.planner.events import (
    FAILED,
    AppDiskChanged,
    BudgetChanged,
    Fetched,
    FoundChunk,
    Loaded,
    Saved,
    Stored,
)
from llmaas.planner.pool_room import PoolRoom
from llmaas.planner.tally import Tally
from llmaas.planner.write_back import WriteBack
from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextId, Tier


class PoolBooks:
    """Moves copies in the ledger, and keeps everything that depends on them in step."""

    def __init__(
        self, ledger: Ledger, room: PoolRoom, writes: WriteBack, disk: DiskQuota, bits: BitBudget, tally: Tally
    ) -> None:
        self._ledger, self._room, self._writes = ledger, room, writes
        self._disk, self._bits, self._tally = disk, bits, tally

    # -- which contexts contain a chunk

    def set_keys(self, context: Context, first: int, keys: tuple[ChunkKey, ...], out: list[Action]) -> None:
        """The context's chunks from index ``first`` on are ``keys`` from now on."""
        self._room.opened(context.id)
        self.sweep(self._disk.set_keys(context, first, keys), out)

    def use(self, context: Context) -> None:
        """A call wants the context: on DISK its chunks are the last to go."""
        self._disk.use(context)

    def closed(self, context: ContextId, gone: Sequence[ChunkKey], out: list[Action]) -> None:
        """The context is no more; of the chunks ``gone`` the store has no copy any more."""
        for key in gone:
            if key in self._ledger and self._ledger.chunk(key).disk is Copy.PRESENT:
                self._ledger.drop_disk(key)
                self._writes.put_off([(NOBODY, key)])
                self._room.forget_if_lost(key)
        self.sweep(gone, out)
        self._room.closed(context)

    def make_coldest(self, context: Context) -> None:
        """The context was last used before all others: on DISK its chunks are the first to go."""
        self._disk.make_coldest(context)

    def found(self, context: Context, chunks: Sequence[FoundChunk], out: list[Action]) -> None:
        """The store holds these chunks of the context since the start."""
        for key, nbytes, meta in chunks:
            self._ledger.found_on_disk(key, nbytes)
            if meta is not None:
                self._bits.found(context, key, meta, nbytes)
        if chunks:
            self._disk.shrink(out)

    def sweep(self, keys: Sequence[ChunkKey], out: list[Action]) -> None:
        """Chunks have come to rest, or lost a context: drop the copies that no context needs any more."""
        pool, disk = [], []
        for key in keys:
            had_pool, had_disk = self._ledger.sweep(key)
            if key not in self._ledger:
                self._room.forget(key)
            if had_pool:
                self._room.remove(key)
                pool.append(key)
            if had_disk:
                disk.append(key)
        if pool:
            out.append(DropPool(tuple(pool)))
        if disk:
            out.append(DropDisk(tuple(disk)))
        self._disk.settle(keys)
        self._room.shrink(out)

    @contextmanager
    def pinned(self, keys: Collection[ChunkKey]) -> Iterator[None]:
        """Until the end of the block none of these chunks loses a copy."""
        for key in keys:
            self._ledger.pin(key)
        yield
        for key in keys:
            self._ledger.unpin(key)
        self._disk.settle(keys)

    def set_budgets(self, event: BudgetChanged, out: list[Action]) -> None:
        """A smaller budget drops chunks at once; a larger quota lets chunks in that it had refused."""
        if event.pool_bytes is not None:
            self._room.set_budget(event.pool_bytes, out)
        if event.bits is not None:
            self._bits.set_bits(event.bits)
        if event.disk_bytes is not None:
            self._writes.enqueue(self._disk.set_quota(event.disk_bytes, out))

    def set_app_disk(self, event: AppDiskChanged, out: list[Action]) -> None:
        """A smaller quota of an app drops its chunks at once; a larger one lets chunks in that it had refused."""
        self._writes.enqueue(self._disk.set_app_quota(event.app, event.disk_bytes, out))

    # -- CELLS -> POOL

    def begin_save(self, key: ChunkKey, nbytes: int, out: list[Action]) -> bool:
        """Reserve room for a chunk that is about to be coded; False if there is none."""
        if not self._room.make(nbytes, out):
            return False
        self._ledger.begin_pool(key, nbytes)
        self._ledger.pin(key)
        return True

    def end_save(self, save: SaveChunks, event: Saved, now: float, out: list[Action]) -> None:
        """Chunks were coded, or could not be. Those that were are to be written."""
        for target, outcome in zip(save.chunks, event.outcomes, strict=True):
            key = target.key
            self._ledger.unpin(key)
            if isinstance(outcome, Stored):
                self._ledger.arrive_pool(key, outcome.nbytes)
                self._bits.stored(save.context, target, outcome.nbytes, now)
                user = save.context, (target.stop - 1) // CHUNK_TOKENS
                self._room.add(key, target.stop - target.start, outcome.nbytes, now, user)
                self._writes.saved(save.context, target)
                self._tally.chunks_saved += 1
            else:
                self._ledger.fail_pool(key)
                self._tally.chunks_unsaved += 1
        self.sweep([target.key for target in save.chunks], out)

    # -- DISK or POOL -> CELLS

    def begin_load(self, context: Context, first: int, stop: int, out: list[Action]) -> tuple[ChunkSource, ...]:
        """Pin chunks ``first`` .. ``stop - 1``; those that are read from DISK stay in the POOL if there is room."""
        spans = [ChunkSpan(context.keys[i], i * CHUNK_TOKENS, context.end_of(i)) for i in range(first, stop)]
        return self.begin_load_of(context, spans, out)

    def begin_load_of(self, context: Context, spans: Sequence[ChunkSpan], out: list[Action]) -> tuple[ChunkSource, ...]:
        """The same for these chunks, or for a state of the whole sequence."""
        chunks = [self._ledger.pin(span.key) for span in spans]  # first, so that none evicts another
        wanted = sum(chunk.disk_bytes for chunk in chunks if chunk.pool is Copy.ABSENT)
        if wanted:
            self._room.make(wanted, out, context.id)  # at once, if all of it can stay
        sources = []
        room = True
        for chunk, span in zip(chunks, spans, strict=True):
            key, tier = span.key, chunk.tier
            keep = room and tier is Tier.DISK and self._reserve_copy(key, out)
            room = room and (keep or tier is not Tier.DISK)  # where one finds no room, the others need not ask
            sources.append(ChunkSource(key, span.start, span.stop, tier, keep))
        return tuple(sources)

    def end_load(self, load: LoadChunks, event: Loaded, held: set[ChunkKey], now: float, out: list[Action]) -> None:
        """The first ``n_loaded`` chunks are in CELLS; damaged copies are given up. Those ``held`` need it no longer."""
        damaged = frozenset(event.damaged)
        sound = []
        for i, source in enumerate(load.chunks):
            key = source.key
            self._ledger.unpin(key)
            if key in held:
                held.remove(key)
                self._ledger.unpin(key)
            if source.keep:
                self._end_copy(key, source.stop - source.start, now, ok=i < event.n_loaded)
            if key in damaged:
                self._give_up(key, source.tier, out)
            else:
                sound.append(key)
        self._room.touch(sound, now)
        self._bits.touch(sound, now)
        self.sweep([source.key for source in load.chunks], out)

    # -- DISK -> POOL, ahead of a load

    def begin_fetch(self, key: ChunkKey, out: list[Action]) -> bool:
        """Pin a chunk on DISK and reserve its room in the POOL; False if there is none.

        It cannot go to CELLS yet, so it needs the room whatever the room is worth to other contexts.
        """
        self._ledger.pin(key)
        if not self._reserve_copy(key, out, ahead=True):
            self._ledger.unpin(key)
            return False
        return True

    def end_fetch(
        self,
        fetch: FetchChunks,
        event: Fetched,
        tokens: Sequence[int],
        held: set[ChunkKey] | None,
        now: float,
        out: list[Action],
    ) -> None:
        """Chunks of so many ``tokens`` are in the POOL, or their copies on DISK proved damaged.

        Those that arrived are added to ``held`` and stay pinned until ``end_load`` or ``release``; None: none is.
        """
        for key, outcome, n in zip(fetch.keys, event.outcomes, tokens, strict=True):
            ok = outcome is not FAILED
            if ok and held is not None:
                held.add(key)
            else:
                self._ledger.unpin(key)
            self._end_copy(key, n, now, ok=ok)
            if ok:
                self._bits.touch((key,), now)
            else:
                self._give_up(key, Tier.DISK, out)
        self.sweep(fetch.keys, out)

    def release(self, held: set[ChunkKey], out: list[Action]) -> None:
        """These chunks were fetched for a job that has no more use for them."""
        keys = list(held)
        held.clear()
        for key in keys:
            self._ledger.unpin(key)
        self.sweep(keys, out)

    def _reserve_copy(self, key: ChunkKey, out: list[Action], *, ahead: bool = False) -> bool:
        """Reserve room for a chunk that is read from DISK; False if there is none that it deserves."""
        chunk = self._ledger.chunk(key)
        if chunk.pool is not Copy.ABSENT:
            return False
        make = self._room.make(chunk.disk_bytes, out) if ahead else self._room.make_for(key, chunk.disk_bytes, out)
        if make:
            self._ledger.begin_pool(key, chunk.disk_bytes)
        return make

    def _end_copy(self, key: ChunkKey, tokens: int, now: float, *, ok: bool) -> None:
        """A chunk that was read from DISK is in the POOL, too, or is not."""
        if ok:
            nbytes = self._ledger.chunk(key).disk_bytes
            self._ledger.arrive_pool(key, nbytes)
            self._room.add(key, tokens, nbytes, now)
        else:
            self._ledger.fail_pool(key)

    def _give_up(self, key: ChunkKey, tier: Tier, out: list[Action]) -> None:
        """The copy there is damaged."""
        chunk = self._ledger.chunk(key)
        self._tally.chunks_damaged += 1
        if tier is Tier.POOL and chunk.pool is Copy.PRESENT and not chunk.pins:
            self._ledger.drop_pool(key)
            self._room.remove(key)
            out.append(DropPool((key,)))
        elif tier is Tier.DISK and chunk.disk is Copy.PRESENT and not chunk.pins:  # a fork may be loading it, too
            self._ledger.drop_disk(key)
            out.append(DropDisk((key,)))
        self._room.forget_if_lost(key)

    def check(self, contexts: list[Context]) -> list[str]:
        """Problems found; empty when the books balance."""
        return self._ledger.check() + self._bits.check() + self._disk.check(contexts)
