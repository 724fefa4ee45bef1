"""The disk quota: whose chunks stay on DISK when there is not room for all.

Law: the chunks of the coldest contexts go first, the last chunk of a context before its first; a chunk is as warm as
the warmest context that contains it. Nothing that moves or is pinned is touched: it is looked at again when it comes to
rest. Work per event is that of the context in use and of the chunks that go; idle contexts cost nothing.

Contexts stand in the order of their last use. The coldest are *cooled* from their ends; a chunk that only cooled
contexts contain loses its DISK copy (``Chunk.cold`` counts them). Rejected: an order over chunks, which takes 100 bytes
for each chunk on disk, and an owner for every chunk, which may be colder than others that share it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from llmaas.kvchunks.ledger import Chunk, Copy, Ledger
from llmaas.planner.actions import Action, DropDisk
from llmaas.planner.context import Context
from llmaas.planner.tally import Tally
from llmaas.policies.wear import WearPolicy
from llmaas.records import AppId, ChunkKey, ContextId

_FIRST_USE = 1 << 32
"""Number of the first use after the start. Contexts that were used before it have lower ones."""


class DiskQuota:
    """Admits chunks to DISK under ``quota`` bytes."""

    def __init__(
        self, quota: int, ledger: Ledger, wear: WearPolicy, tally: Tally, on_lost: Callable[[ChunkKey], None]
    ) -> None:
        """``on_lost`` is called for every chunk that loses its last copy here."""
        self.quota = quota
        self._wear = wear
        self._ledger, self._tally, self._on_lost = ledger, tally, on_lost
        self._order: OrderedDict[ContextId, Context] = OrderedDict()
        """Contexts that are not wholly cooled, coldest first."""
        self._refused: set[ChunkKey] = set()
        """Chunks of the POOL that DISK has no room for: they may leave the POOL all the same."""
        self._spare: dict[ChunkKey, None] = {}
        """Chunks that have become cold without need, by a context that went or a pin that ended: the first to go."""
        self._gone: list[ChunkKey] = []
        """Dropped from the ledger; DropDisk is still to be emitted."""
        self._app_quotas: dict[AppId, int] = {}
        """Bytes that single apps' chunks may take."""
        self._dry: tuple[AppId, int, int] | None = None
        """An app that has nothing to let go: when that was seen, and how many bytes its chunks took."""
        self._full = False
        self._uses = self._coldest = _FIRST_USE

    # -- contexts

    def use(self, context: Context) -> None:
        """The context is in use: from now on it is the warmest."""
        self._uses += 1
        context.used = self._uses
        for key in context.keys[len(context.keys) - context.cooled :]:
            self._ledger.warm(key)
        context.cooled = 0
        self._order[context.id] = context
        self._order.move_to_end(context.id)

    def make_coldest(self, context: Context) -> None:
        """The context has just been opened, and was last used before all others."""
        self._coldest -= 1
        context.used = self._coldest
        if context.id in self._order:
            self._order.move_to_end(context.id, last=False)

    def set_keys(self, context: Context, first: int, keys: tuple[ChunkKey, ...]) -> list[ChunkKey]:
        """Use the context, and replace its chunks from index ``first`` on. The chunks that were there before."""
        self.use(context)
        old = context.keys[first:]
        for key in keys:
            self._ledger.ref(key, context.app)
        for key in old:
            self._ledger.unref(key)
        context.keys[first:] = keys
        if not context.keys:
            del self._order[context.id]
        return old

    # -- chunks that are to be written

    def admit(
        self, keys: Iterable[ChunkKey], owner: ContextId, most: int, out: list[Action]
    ) -> tuple[list[ChunkKey], bool]:
        """Reserve DISK for the first ``most`` of these chunks of the POOL that there is room for.

        Contexts colder than ``owner`` make room; DropDisk for their chunks is emitted here, before the write that
        follows. Returns the chunks that may be written, and whether others were refused.
        """
        admitted: list[ChunkKey] = []
        any_refused = False
        for key in keys:
            if self._has_room_for(key, owner):
                self._ledger.begin_disk(key)
                admitted.append(key)
                if len(admitted) == most:
                    break
            else:
                any_refused = True
        self._drop_gone(out)
        return admitted, any_refused

    def _has_room_for(self, key: ChunkKey, owner: ContextId) -> bool:
        chunk = self._ledger.chunk(key)
        if chunk.cold < chunk.refs and self._make_room(chunk, owner):
            self._refused.discard(key)
            return True
        if key not in self._refused:
            self._refused.add(key)
            self._tally.writes_refused += 1
        return False

    def _make_room(self, chunk: Chunk, owner: ContextId) -> bool:
        nbytes = chunk.pool_bytes
        if chunk.app in self._app_quotas and not self._make_app_room(chunk.app, nbytes, owner):
            return False
        need = self._ledger.disk_used + nbytes - self.quota
        if need <= 0:
            return True
        if nbytes > self.quota or not self._wear.may_replace(nbytes) or self._cool(need, self._last_use(owner)) < need:
            return False
        self._wear.replaced(nbytes)
        return True

    def _make_app_room(self, app: AppId, nbytes: int, owner: ContextId) -> bool:
        """Let colder contexts of the app go until its quota has room for ``nbytes`` more."""
        quota, used = self._app_quotas[app], self._ledger.disk_used_of(app)
        need = used + nbytes - quota
        if need <= 0:
            return True
        if nbytes > quota or self._dry == (app, self._uses, used) or not self._wear.may_replace(nbytes):
            return False
        if self._cool(need, self._last_use(owner), app=app) < need:
            self._dry = app, self._uses, self._ledger.disk_used_of(app)
            return False
        self._wear.replaced(nbytes)
        return True

    def calls(self, context: ContextId) -> int:
        """How often a context that is not wholly cooled was called since the start."""
        found = self._order.get(context)
        return found.calls if found is not None else 0

    def _last_use(self, owner: ContextId) -> int:
        context = self._order.get(owner)
        return context.used if context is not None else 0

    def refused_of(self, context: Context) -> list[ChunkKey]:
        """Chunks of a context in use that were refused: there may be room for them now."""
        return [key for key in context.keys if key in self._refused] if self._refused else []

    def refuse(self, key: ChunkKey) -> None:
        """A chunk of the POOL is not worth its bytes: it may leave the POOL all the same."""
        if key not in self._refused:
            self._refused.add(key)
            self._tally.writes_spared += 1

    def refused(self, key: ChunkKey) -> bool:
        return key in self._refused

    def left_pool(self, key: ChunkKey) -> None:
        """The chunk left the POOL, so it can no longer be written."""
        self._refused.discard(key)

    # -- making room

    def room(self, app: AppId) -> int:
        """Bytes that are free for chunks of the app."""
        free = self.quota - self._ledger.disk_used
        if app in self._app_quotas:
            free = min(free, self._app_quotas[app] - self._ledger.disk_used_of(app))
        return max(0, free)

    def set_quota(self, nbytes: int, out: list[Action]) -> list[tuple[ContextId, ChunkKey]]:
        """Keep to ``nbytes`` from now on. If that is more than before: refused chunks to try again, warmest first."""
        raised, self.quota = nbytes > self.quota, nbytes
        self._wear.set_quota(nbytes)
        self.shrink(out)
        if not raised or not self._refused:
            return []
        return [(context.id, key) for context in reversed(self._order.values()) for key in self.refused_of(context)]

    def set_app_quota(self, app: AppId, nbytes: int | None, out: list[Action]) -> list[tuple[ContextId, ChunkKey]]:
        """Keep the app's chunks to ``nbytes`` from now on; None: to what all together may take. Refused chunks of it to
        try again, warmest first."""
        self._dry = None
        if nbytes is None:
            self._app_quotas.pop(app, None)
        else:
            self._app_quotas[app] = nbytes
        self.shrink(out)
        mine = [context for context in reversed(self._order.values()) if context.app == app] if self._refused else []
        return [(context.id, key) for context in mine for key in self.refused_of(context)]

    def shrink(self, out: list[Action]) -> None:
        """Drop what exceeds the quota, and those of apps."""
        for app, quota in self._app_quotas.items():
            if (need := self._ledger.disk_used_of(app) - quota) > 0:
                self._cool(need, self._uses + 1, app=app)
        if (need := self._ledger.disk_used - self.quota) > 0:
            self._cool(need, self._uses + 1)
        self._drop_gone(out)

    def disk_is_full(self, keys: list[ChunkKey], owner: ContextId, out: list[Action]) -> bool:
        """A write found the disk full: drop whole colder contexts, whose files then go. True if that freed something.

        Once: until something is written, or a call has returned (``found_room``), further writes just fail.
        """
        if self._full:
            return False
        self._full = True
        need = sum(self._ledger.chunk(key).pool_bytes for key in keys)
        freed = self._cool(need, self._last_use(owner), whole=True)
        self._drop_gone(out)
        return freed > 0

    def found_room(self) -> None:
        """The disk has room again, or may have."""
        self._full = False

    def drop_earlier(self, owner: ContextId, out: list[Action]) -> None:
        """A state of the context came to DISK: its earlier ones need not be there any more."""
        context = self._order.get(owner)
        for state in context.earlier if context is not None else ():
            self._drop_if_cold(state.key)
        self._drop_gone(out)

    def settle(self, keys: Iterable[ChunkKey]) -> None:
        """Chunks came to rest or lost a context: those that only cooled contexts contain need not stay."""
        for key in keys:
            if key in self._ledger and self._is_cold(self._ledger.chunk(key)):
                self._spare[key] = None
            elif self._spare:
                self._spare.pop(key, None)

    def _cool(self, need: int, colder_than: int, *, whole: bool = False, app: AppId | None = None) -> int:
        """Cool contexts, coldest first, until ``need`` bytes of DISK are free; bytes that came free.

        ``colder_than``: only contexts whose last use was before this one. ``whole``: do not stop within a context.
        ``app``: only contexts and chunks of this app.
        """
        freed, done = self._drop_spare(need, app), []
        for context in self._order.values():
            if freed >= need or context.used >= colder_than:
                break
            if app is not None and context.app != app:
                continue
            while context.cooled < len(context.keys) and (freed < need or whole):
                context.cooled += 1
                key = context.keys[-context.cooled]
                self._ledger.cool(key)
                freed += self._drop_if_cold(key)
            if context.cooled == len(context.keys):
                done.append(context.id)
        for cold in done:
            del self._order[cold]
        return freed

    def _drop_spare(self, need: int, app: AppId | None) -> int:
        """Drop chunks that have become cold without need; bytes that came free."""
        freed, mine = 0, list[ChunkKey]()
        if app is not None:
            mine = [key for key in self._spare if key in self._ledger and self._ledger.chunk(key).app == app]
        while freed < need and (self._spare if app is None else mine):
            key = self._spare.popitem()[0] if app is None else mine.pop()
            self._spare.pop(key, None)
            freed += self._drop_if_cold(key) if key in self._ledger else 0
        return freed

    @staticmethod
    def _is_cold(chunk: Chunk) -> bool:
        """Whether only cooled contexts contain the chunk, and its copy on DISK is at rest."""
        return chunk.cold == chunk.refs and chunk.disk is Copy.PRESENT and not chunk.pins and not chunk.moving

    def _drop_if_cold(self, key: ChunkKey) -> int:
        """Bytes of DISK that this frees; 0 if the chunk stays."""
        chunk = self._ledger.chunk(key)
        if not self._is_cold(chunk):
            return 0
        nbytes = chunk.disk_bytes
        self._ledger.drop_disk(key)
        self._gone.append(key)
        self._tally.chunks_left_disk += 1
        if chunk.pool is Copy.PRESENT:
            self._refused.add(key)
        else:
            self._on_lost(key)
        return nbytes

    def _drop_gone(self, out: list[Action]) -> None:
        """Have the store drop all that left DISK, in one action: each one is a transaction."""
        if self._gone:
            out.append(DropDisk(tuple(self._gone)))
            self._gone.clear()

    # -- books

    def check(self, contexts: list[Context]) -> list[str]:
        """Problems found; empty when the books balance."""
        cold: dict[ChunkKey, int] = {}
        problems = []
        for context in contexts:
            for key in context.keys[len(context.keys) - context.cooled :]:
                cold[key] = cold.get(key, 0) + 1
            for _, key in context.earlier:
                cold[key] = cold.get(key, 0) + 1
            if (context.id in self._order) < (context.cooled < len(context.keys)):
                problems.append(f"context {context.id} is out of the quota's order")
        for context in contexts:
            for key in context.keys:
                chunk = self._ledger.chunk(key)
                if chunk.cold != cold.get(key, 0):
                    problems.append(f"chunk {key.hex()}: {chunk.cold} cold contexts on the books")
        for key in self._refused:
            if key not in self._ledger or self._ledger.chunk(key).pool is not Copy.PRESENT:
                problems.append(f"chunk {key.hex()} is refused and not in the POOL")
        for app, quota in self._app_quotas.items():
            if self._ledger.disk_used_of(app) > quota:
                problems.append(f"DISK: {self._ledger.disk_used_of(app)} bytes of {quota} of the app {app}")
        if self._ledger.disk_used > self.quota:
            problems.append(f"DISK: {self._ledger.disk_used} bytes of {self.quota}")
        return problems
