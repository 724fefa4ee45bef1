"""The swap books: ledger, eviction order, and what waits to be saved to the POOL or written to DISK.

Law: a chunk in CELLS is saved to the POOL after the call that made it, then written to DISK, both ahead of need;
from then on eviction is free. A chunk that cannot be kept is given up, never an error: its tokens remain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import (
    Action,
    ChunkSource,
    ChunkSpan,
    ChunkTarget,
    DropDisk,
    DropPool,
    MeasureChunks,
    PersistSensitivity,
    SaveChunks,
)
from llmaas.planner.bit_budget import NOBODY, BitBooks
from llmaas.planner.context import Context
from llmaas.planner.disk_quota import DiskQuota
from llmaas.planner.events import Lowered, Measured, Saved, Stored, Written
from llmaas.planner.lowering import Lowering
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.tally import Tally
from llmaas.planner.write_back import Writes
from llmaas.policies.eviction import Arrival, EvictionPolicy
from llmaas.records import CHUNK_TOKENS, ChunkKey, ChunkMeta, ContextId, Tier


class SwapBooks:
    """Decides saves, writes and evictions; emits them into ``out`` lists."""

    def __init__(self, settings: PlannerSettings, eviction: EvictionPolicy, tally: Tally) -> None:
        self.ledger = Ledger(settings.pool_bytes)
        self._settings = settings
        self._eviction = eviction
        self._tally = tally
        self._open: set[ContextId] = set()
        self._home: dict[ChunkKey, tuple[ContextId, int]] = {}
        """The latest user of each chunk that was used since the start, and its place there."""
        self._to_save: deque[tuple[Context, int, ChunkKey]] = deque()
        self._saving: dict[int, SaveChunks] = {}
        self._measuring: dict[int, tuple[Context, list[tuple[Context, int, ChunkKey]]]] = {}
        """Saves that wait for a measurement of what their chunks tolerate."""
        self._encoded_size = Codec(settings.geometry, kernels=NUMPY).encoded_size
        self._bits = BitBooks(settings, self._encoded_size)
        self.disk = DiskQuota(settings.disk_bytes, self.ledger, tally, self._bits.forget)
        self.writes = Writes(settings, self.ledger, self.disk, self._bits, self.next_id, tally)
        self.lowering = Lowering(self.ledger, self._bits, self.writes, self.next_id, tally)
        self._next_id = 0

    @property
    def idle(self) -> bool:
        saving = self._to_save or self._saving or self._measuring
        return not saving and self.lowering.idle and self.writes.idle

    def next_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # -- room in the POOL

    def make_room(self, nbytes: int, out: list[Action], candidate: ContextId | None = None) -> bool:
        """Evict until ``nbytes`` more fit, or change nothing and return False.

        With ``candidate``, only if the room is better spent on that context.
        """
        need = self.ledger.room(nbytes)
        if need <= 0:
            return True
        plan = self._eviction.victims(need, self._gain, candidate)
        if plan is None:
            if candidate is None:
                self.writes.flush()
                self.pump_writes(out)
            return False
        self._evict(plan, out)
        return True

    def set_pool_budget(self, nbytes: int, out: list[Action]) -> None:
        """Shrinking drops clean chunks at once; the rest goes as it becomes clean."""
        self.ledger.pool_budget = nbytes
        self._shrink(out)
        if self.ledger.room(0) > 0:
            self.writes.forsake(out)
            self._shrink(out)

    def returned(self, context: Context, now: float) -> None:
        """A call needs the context in CELLS, and it is not all there."""
        for i, key in enumerate(context.keys):
            self._home[key] = context.id, i
        self._eviction.returned(context.id, now)

    def touch(self, keys: Iterable[ChunkKey], now: float) -> None:
        """Chunks were loaded, or have just left CELLS."""
        if self._eviction.by_use:
            for key in keys:
                if key in self.ledger and self.ledger.chunk(key).pool is Copy.PRESENT:
                    self._eviction.touch(key, now)

    def set_disk_quota(self, nbytes: int, out: list[Action]) -> None:
        """Lowering it drops the coldest contexts' chunks at once; raising it lets those in that had no room."""
        self.writes.want(self.disk.set_quota(nbytes, out))

    def _shrink(self, out: list[Action]) -> None:
        need = self.ledger.room(0)
        if need <= 0:
            return
        may: dict[ChunkKey, int] = {}
        plan = self._eviction.victims(need, lambda key: may.setdefault(key, self._gain(key)))
        if plan is None:
            self.writes.flush()
            most = sum(may.values())
            plan = self._eviction.victims(most, self._gain) if most else None  # not enough; so all that may go
        if plan:
            self._evict(plan, out)

    def _evict(self, plan: list[ChunkKey], out: list[Action]) -> None:
        self.ledger.evict(plan, self._gain)
        for key in plan:
            self._eviction.forget(key)
            self.disk.forget(key)
            self._forget_if_lost(key)
        self._tally.chunks_evicted += len(plan)
        out.append(DropPool(tuple(plan)))

    def _gain(self, key: ChunkKey) -> int:
        chunk = self.ledger.chunk(key)
        if chunk.pins or chunk.pool is not Copy.PRESENT:
            return 0
        safe = chunk.disk is Copy.PRESENT or (chunk.disk is Copy.ABSENT and self.writes.given_up(key))
        return chunk.pool_bytes if safe else 0

    def found(self, context: Context, key: ChunkKey, nbytes: int, notes: ChunkMeta | None) -> None:
        """At start: the store holds the chunk."""
        self.ledger.found_on_disk(key, nbytes)
        if notes is not None:
            self._bits.found(context, key, notes, nbytes)

    def lost(self, keys: tuple[ChunkKey, ...], out: list[Action]) -> None:
        """The store has let go of these chunks' copies."""
        for key in keys:
            if key in self.ledger and self.ledger.chunk(key).disk is Copy.PRESENT:
                self.ledger.drop_disk(key)
                self.writes.failed([(NOBODY, key)])
                self._forget_if_lost(key)
        self.sweep(list(keys), out)

    # -- whose chunks they are

    def own(self, context: Context, first: int, keys: tuple[ChunkKey, ...], out: list[Action]) -> None:
        """The context's chunks from index ``first`` on are ``keys`` from now on."""
        self._open.add(context.id)
        self.disk.use(context)
        old = context.keys[first:]
        for key in keys:
            self.ledger.ref(key)
        for key in old:
            self.ledger.unref(key)
        context.keys[first:] = keys
        if not context.keys:
            self.disk.closed(context)
        self.sweep(old, out)

    def closed(self, context: Context) -> None:
        self._open.discard(context.id)
        self._eviction.closed(context.id)

    def sweep(self, keys: list[ChunkKey], out: list[Action]) -> None:
        """Chunks have come to rest, or lost a context: drop the copies that nobody needs any more."""
        pool, disk = [], []
        for key in keys:
            had_pool, had_disk = self.ledger.sweep(key)
            if key not in self.ledger:
                self._bits.forget(key)
                self._home.pop(key, None)
            if had_pool:
                self._eviction.forget(key)
                self.disk.forget(key)
                pool.append(key)
            if had_disk:
                disk.append(key)
        if pool:
            out.append(DropPool(tuple(pool)))
        if disk:
            out.append(DropDisk(tuple(disk)))
        self.disk.settle(keys)
        self._shrink(out)  # a budget that has fallen meanwhile

    # -- CELLS -> POOL

    def want_saved(self, context: Context, out: list[Action]) -> None:
        """Queue every chunk of the context that is in CELLS as computed and has no copy."""
        if not self._settings.swappable:
            return
        self.hurry(context)
        n_tokens = min(context.cells, context.n_kv)
        n_chunks = -(-n_tokens // CHUNK_TOKENS)
        wanted = [
            (context, i, key)
            for i, key in enumerate(context.keys[:n_chunks])
            if i not in context.lossy and self._savable(context, i, key)
        ]
        context.unsaved += len(wanted)
        if self._settings.measure and any(i < n_tokens // CHUNK_TOKENS for _, i, _ in wanted):
            self._measure(context, n_tokens, wanted, out)
        else:
            self._to_save.extend(wanted)
        self.writes.try_again(context)

    def _measure(
        self, context: Context, n_tokens: int, wanted: list[tuple[Context, int, ChunkKey]], out: list[Action]
    ) -> None:
        """How many bits the wanted chunks need shows only in what attention makes of them."""
        assert context.seq is not None
        starts = range(0, n_tokens, CHUNK_TOKENS)
        spans = (ChunkSpan(k, s, min(s + CHUNK_TOKENS, n_tokens)) for k, s in zip(context.keys, starts, strict=False))
        action = MeasureChunks(self.next_id(), context.id, context.seq, tuple(spans))
        self._measuring[action.measure] = context, wanted
        out.append(action)

    def measured(self, event: Measured, now: float, out: list[Action]) -> None:
        news = []
        for key, found in event.scores:
            if key not in self.ledger:
                continue
            self._bits.learn(key, found, now)
            on_disk = self.ledger.chunk(key).disk is Copy.PRESENT
            if on_disk and (changed := self._bits.news(key)) is not None:
                news.append((key, changed))
        if news:
            out.append(PersistSensitivity(tuple(news)))
        if event.measure in self._measuring:
            self._to_save.extend(self._measuring.pop(event.measure)[1])

    def hurry(self, context: Context | None = None) -> bool:
        """Let saves no longer wait for what is being measured, of one context or of all; False if none did.

        What comes of the measurement still serves later decisions.
        """
        late = [m for m, (of, _) in self._measuring.items() if context is None or of is context]
        for measure in late:
            self._to_save.extend(self._measuring.pop(measure)[1])
        return bool(late)

    def _savable(self, context: Context, index: int, key: ChunkKey) -> bool:
        if index >= len(context.keys) or context.keys[index] != key or index in context.lossy:
            return False
        chunk = self.ledger.chunk(key)
        whole = min((index + 1) * CHUNK_TOKENS, context.n_kv) <= context.cells
        return whole and chunk.tier is Tier.NONE and not chunk.moving

    def pump_saves(self, now: float, out: list[Action]) -> None:
        """Begin one save batch, of one context, if none is under way."""
        batch: list[ChunkTarget] = []
        owner: Context | None = None
        while self._to_save and not self._saving and len(batch) < self._settings.save_batch:
            context, index, key = self._to_save[0]
            if batch and context is not owner:
                break
            savable = self._savable(context, index, key)
            target = self._reserve(context, index, key, now, out) if savable else None
            if savable and target is None:
                if batch or self.writes.under_way:
                    break  # room comes when the write ends
                self._tally.chunks_unsaved += 1
            self._to_save.popleft()
            context.unsaved -= 1
            if target is not None:
                batch.append(target)
                owner = context
        if owner is not None and owner.seq is not None:
            save = SaveChunks(self.next_id(), owner.id, owner.seq, tuple(batch))
            self._saving[save.save] = save
            out.append(save)

    def _reserve(
        self, context: Context, index: int, key: ChunkKey, now: float, out: list[Action]
    ) -> ChunkTarget | None:
        start = index * CHUNK_TOKENS
        stop = min(start + CHUNK_TOKENS, context.n_kv)
        precision = self._bits.choose(key, stop - start, now)
        nbytes = self._encoded_size(stop - start, precision, sinks_at(start))
        if not self.make_room(nbytes, out):
            return None
        self.ledger.begin_pool(key, nbytes)
        self.ledger.pin(key)
        return ChunkTarget(key, start, stop, precision)

    def saved(self, event: Saved, now: float, out: list[Action]) -> ContextId:
        """A save ended; whose chunks they were."""
        save = self._saving.pop(event.save)
        for target, outcome in zip(save.chunks, event.outcomes, strict=True):
            self.ledger.unpin(target.key)
            if isinstance(outcome, Stored):
                nbytes = outcome.nbytes
                self.ledger.arrive_pool(target.key, nbytes)
                self._bits.stored(save.context, target, nbytes, now)
                self._home[target.key] = save.context, target.start // CHUNK_TOKENS
                self._arrived(target.key, target.stop - target.start, nbytes, now)
                self.writes.saved(save.context, target)
                self._tally.chunks_saved += 1
            else:
                self.ledger.fail_pool(target.key)
                self._tally.chunks_unsaved += 1
        self.sweep([t.key for t in save.chunks], out)
        return save.context

    # -- the POOL with fewer bits

    def lowered(self, event: Lowered, now: float, out: list[Action]) -> None:
        self.sweep(self.lowering.lowered(event, now, out), out)

    # -- POOL -> DISK

    def pump_writes(self, out: list[Action]) -> None:
        if self.writes.pump(out):
            self._shrink(out)

    def written(self, event: Written, out: list[Action]) -> None:
        self.sweep(self.writes.written(event, out), out)

    # -- DISK or POOL -> CELLS

    def reserve_copy(self, key: ChunkKey, out: list[Action], *, ahead: bool = False) -> bool:
        """Reserve POOL room for a chunk read from DISK; False if it passes through without a copy.

        ``ahead``: it is read before it can go to CELLS, so it needs the room whatever the room is worth to others.
        """
        chunk = self.ledger.chunk(key)
        candidate = None if ahead or self._home[key][0] not in self._open else self._home[key][0]
        if chunk.pool is not Copy.ABSENT or not self.make_room(chunk.disk_bytes, out, candidate):
            return False
        self.ledger.begin_pool(key, chunk.disk_bytes)
        return True

    def loaded(self, source: ChunkSource, *, ok: bool, damaged: bool, now: float, out: list[Action]) -> None:
        """A load of one chunk ended; a damaged copy is given up. The caller sweeps."""
        key = source.key
        self.ledger.unpin(key)
        if source.keep:
            if ok:
                nbytes = self.ledger.chunk(key).disk_bytes
                self.ledger.arrive_pool(key, nbytes)
                self._arrived(key, source.stop - source.start, nbytes, now)
            else:
                self.ledger.fail_pool(key)
        if damaged:
            self._give_up(key, source.tier, out)
        else:
            self.touch((key,), now)
            self._bits.touch(key, now)

    def fetched(self, key: ChunkKey, *, tokens: int, ok: bool, now: float, out: list[Action]) -> None:
        """A chunk was read into the POOL, or its copy on DISK proved damaged."""
        if ok:
            nbytes = self.ledger.chunk(key).disk_bytes
            self.ledger.arrive_pool(key, nbytes)
            self._arrived(key, tokens, nbytes, now)
            self._bits.touch(key, now)
        else:
            self.ledger.fail_pool(key)
            self._give_up(key, Tier.DISK, out)

    def _arrived(self, key: ChunkKey, tokens: int, nbytes: int, now: float) -> None:
        home = self._home[key]
        self._eviction.add(key, Arrival(*home, tokens, nbytes), now)
        if home[0] not in self._open:  # it went while the chunk was on its way
            self._eviction.closed(home[0])

    def _give_up(self, key: ChunkKey, tier: Tier, out: list[Action]) -> None:
        chunk = self.ledger.chunk(key)
        self._tally.chunks_damaged += 1
        if tier is Tier.POOL and chunk.pool is Copy.PRESENT and not chunk.pins:
            self.ledger.drop_pool(key)
            self._eviction.forget(key)
            self.disk.forget(key)
            out.append(DropPool((key,)))
        elif tier is Tier.DISK and chunk.disk is Copy.PRESENT and not chunk.pins:  # a fork may be loading it, too
            self.ledger.drop_disk(key)
            out.append(DropDisk((key,)))
        self._forget_if_lost(key)

    def _forget_if_lost(self, key: ChunkKey) -> None:
        if self.ledger.tier(key) is Tier.NONE:
            self._bits.forget(key)

    def check(self) -> list[str]:
        return self.ledger.check() + self._bits.check()
