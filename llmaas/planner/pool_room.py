"""Room in the POOL: which chunks leave it, and when.

Law: a chunk leaves the POOL only if nothing is lost by it: it is on DISK, or DISK has refused or failed it. Last chunks
that wait for longer ones are written when nothing else can leave it, and lost only if the POOL must shrink at once. A
plan is carried out whole or not at all. The eviction policy chooses; the ledger checks what it has chosen.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import Action, DropPool
from llmaas.planner.bit_budget import BitBudget
from llmaas.planner.chunk_worth import ChunkUser
from llmaas.planner.context import Context
from llmaas.planner.disk_quota import DiskQuota
from llmaas.planner.last_chunks import LastChunks
from llmaas.planner.tally import Tally
from llmaas.planner.write_back import WriteBack
from llmaas.policies.eviction import Arrival, EvictionPolicy, Gain
from llmaas.records import ChunkKey, ContextId, Tier


class PoolRoom:
    """Keeps the eviction policy informed, and asks it whenever the POOL must shrink."""

    def __init__(
        self,
        ledger: Ledger,
        eviction: EvictionPolicy,
        writes: WriteBack,
        disk: DiskQuota,
        bits: BitBudget,
        last: LastChunks,
        users: dict[ChunkKey, ChunkUser],
        tally: Tally,
    ) -> None:
        """``users``: the latest user of each chunk that was used since the start; kept here, read by others."""
        self._ledger, self._eviction, self._writes = ledger, eviction, writes
        self._disk, self._bits, self._last, self._users, self._tally = disk, bits, last, users, tally
        self._open: set[ContextId] = set()

    # -- what the policy must know

    def opened(self, context: ContextId) -> None:
        self._open.add(context)

    def closed(self, context: ContextId) -> None:
        self._open.discard(context)
        self._eviction.closed(context)

    def switching_in(self, context: Context, now: float) -> None:
        """A call needs the context in CELLS, and it is not all there."""
        for i, key in enumerate(context.keys):
            self._users[key] = context.id, i
        self._eviction.returned(context.id, now)

    def expected(self, key: ChunkKey, user: ChunkUser) -> None:
        """The chunk comes without a call, for this context."""
        self._users.setdefault(key, user)

    def touch(self, keys: Iterable[ChunkKey], now: float) -> None:
        """Chunks were loaded, or have just left CELLS."""
        if self._eviction.by_use:
            for key in keys:
                if key in self._ledger and self._ledger.chunk(key).pool is Copy.PRESENT:
                    self._eviction.touch(key, now)

    def add(self, key: ChunkKey, tokens: int, nbytes: int, now: float, user: ChunkUser | None = None) -> None:
        """A copy of a chunk is in the POOL now. ``user``: the context that has just saved it, and its index there."""
        if user is None:
            user = self._users[key]
        else:
            self._users[key] = user
        context, index = user
        self._eviction.add(key, Arrival(context, index, tokens, nbytes), now)
        if context not in self._open:  # it was closed while the chunk was on its way
            self._eviction.closed(context)

    def remove(self, key: ChunkKey) -> None:
        """The copy in the POOL is gone. If there is none on DISK, how the chunk was coded is forgotten, too."""
        self._eviction.forget(key)
        self._last.remove(key)
        self._disk.left_pool(key)
        self.forget_if_lost(key)

    def forget_if_lost(self, key: ChunkKey) -> None:
        """A copy is gone: with the last one goes what is known of how the chunk is coded."""
        if key not in self._ledger or self._ledger.tier(key) is Tier.NONE:
            self._bits.forget(key)

    def forget(self, key: ChunkKey) -> None:
        """The chunk is in no context any more."""
        self._bits.forget(key)
        self._users.pop(key, None)

    # -- room

    def make(self, nbytes: int, out: list[Action], candidate: ContextId | None = None) -> bool:
        """Evict until ``nbytes`` more fit, or change nothing and return False.

        With ``candidate``, only if the room is better spent on that context.
        """
        need = self._ledger.room(nbytes)
        if need <= 0:
            return True
        plan = self._eviction.victims(need, self._gain, candidate)
        if plan is not None:
            self._evict(plan, out)
            return True
        if candidate is not None:
            return False
        self._writes.flush()
        self.begin_write(out)
        return self._let_last_go(need, out)

    def make_for(self, key: ChunkKey, nbytes: int, out: list[Action]) -> bool:
        """The same for a chunk that is read on its way to CELLS: only if its latest user deserves the room.

        A user that was closed meanwhile is not asked about.
        """
        context = self._users[key][0]
        return self.make(nbytes, out, context if context in self._open else None)

    def set_budget(self, nbytes: int, out: list[Action]) -> None:
        """Shrinking drops clean chunks at once; the rest goes as it becomes clean."""
        self._ledger.pool_budget = nbytes
        self.shrink(out)
        if self._ledger.room(0) > 0:
            self._writes.abandon(out)
            self.shrink(out)

    def shrink(self, out: list[Action]) -> None:
        """Evict what exceeds the budget, as far as it may leave: the budget may have fallen."""
        need = self._ledger.room(0)
        if need <= 0:
            return
        may: dict[ChunkKey, int] = {}
        plan = self._eviction.victims(need, lambda key: may.setdefault(key, self._gain(key)))
        if plan is None and self._evict_with_last(need, out):
            return
        if plan is None:
            self._writes.flush()
            most = sum(may.values())
            plan = self._eviction.victims(most, self._gain) if most else None  # not enough; so all that may go
        if plan:
            self._evict(plan, out)

    def begin_write(self, out: list[Action]) -> None:
        """Begin a write to DISK if none is under way. What the quota refuses may be evicted at once."""
        if self._writes.pump(out):
            self.shrink(out)

    def _let_last_go(self, need: int, out: list[Action]) -> bool:
        """Have last chunks written, one after the other, those of the contexts used longest ago first; False while that
        is under way. They may be evicted afterwards, or at once if DISK does not take them."""
        while not self._writes.under_way:  # or room comes when the write ends
            if (plan := self._eviction.victims(need, self._gain)) is not None:
                self._evict(plan, out)
                return True
            if not self._last:
                return False
            self._writes.enqueue([self._last.take_oldest()])
            self.begin_write(out)
        return False

    def _evict_with_last(self, need: int, out: list[Action]) -> bool:
        """Evict last chunks, too, which must be computed again then; False, and nothing is evicted, if that is not
        enough."""
        plan = self._eviction.victims(need, self._gain_of_any) if self._last else None
        if plan is None:
            return False
        self._evict(plan, out, self._gain_of_any)
        return True

    def _evict(self, plan: list[ChunkKey], out: list[Action], gain: Gain | None = None) -> None:
        self._ledger.evict(plan, gain or self._gain)
        for key in plan:
            self.remove(key)
        self._tally.chunks_evicted += len(plan)
        out.append(DropPool(tuple(plan)))

    def _gain_of_any(self, key: ChunkKey) -> int:
        """The same, where last chunks may be evicted."""
        chunk = self._ledger.chunk(key)
        if key in self._last and chunk.pool is Copy.PRESENT and not chunk.pins:
            return chunk.pool_bytes
        return self._gain(key)

    def _gain(self, key: ChunkKey) -> int:
        """Bytes that evicting the chunk frees; 0 if it may not be evicted now."""
        chunk = self._ledger.chunk(key)
        if chunk.pins or chunk.pool is not Copy.PRESENT:
            return 0
        safe = chunk.disk is Copy.PRESENT or (chunk.disk is Copy.ABSENT and self._writes.may_lose(key))
        return chunk.pool_bytes if safe else 0
