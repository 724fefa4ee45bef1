"""Swap-out: chunks go from CELLS to the POOL and on to DISK, ahead of need.

Law: nothing here is waited for, except by a context that must leave CELLS before its chunks were saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmaas.errors import assert_never
from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.actions import Action
from llmaas.planner.context import Context
from llmaas.planner.events import Lowered, Measured, Saved, SwapOutEvent, Written
from llmaas.planner.lowering import Lowering
from llmaas.planner.pool_books import PoolBooks
from llmaas.planner.pool_room import PoolRoom
from llmaas.planner.saving import SaveQueue
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.write_back import WriteBack
from llmaas.policies.wear import WearPolicy
from llmaas.records import ChunkKey, ContextId


class SwapOut:
    """The save queue, the write-back and the lowering as one."""

    def __init__(
        self,
        settings: PlannerSettings,
        ledger: Ledger,
        room: PoolRoom,
        books: PoolBooks,
        saves: SaveQueue,
        writes: WriteBack,
        lowering: Lowering,
        wear: WearPolicy,
    ) -> None:
        self._swappable = settings.swappable or settings.state is not None
        self._ledger, self._room, self._books = ledger, room, books
        self._saves, self._writes, self._lowering, self._wear = saves, writes, lowering, wear

    @property
    def idle(self) -> bool:
        return self._saves.idle and self._lowering.idle and self._writes.idle

    def pump(self, now: float, out: list[Action]) -> None:
        """Begin what can begin now of writes, saves and lowerings."""
        self._wear.advance(now)
        self._room.begin_write(out)
        self._saves.pump(now, out)
        self._lowering.pump(now, out)

    def handle(self, event: SwapOutEvent, now: float, out: list[Action]) -> None:
        match event:
            case Saved():
                self._saves.saved(event, now, out)
            case Written():
                self._books.sweep(self._writes.written(event, out), out)
            case Measured():
                self._saves.measured(event, now, out)
            case Lowered():
                self._lowering.lowered(event, now, out)
            case _:
                assert_never(event)

    def flush(self, last: Mapping[ChunkKey, ContextId]) -> None:
        """The service is about to stop: write what was held back from DISK. ``last``: the last chunk of each
        context."""
        self._writes.finish(last)

    # -- what happens to contexts

    def context_changed(self, context: Context, out: list[Action]) -> None:
        """A call has returned: save what it has made, and try again what could not be written."""
        if self._swappable:
            self._saves.enqueue(context, out)
            self._writes.retry(context)

    def hurry(self, now: float, out: list[Action]) -> bool:
        """A call waits for cells: save at once what waits, for measurements or its turn; False if nothing did."""
        return self._saves.pump_hurried(now, out)

    def left_cells(self, context: Context, now: float) -> None:
        """The context has left CELLS. Its chunks count as used until now, only not from the POOL."""
        self._room.touch(context.keys, now)
        self._writes.left_cells(context.id)

    def closed(self, context: Context, others: Iterable[Context]) -> None:
        """The context is no more. Of ``others``, one that shares its unwritten last chunk will write that."""
        key = self._writes.closed(context.id)
        if key is not None and key in self._ledger:
            sharers = (other for other in others if other.app == context.app and key in other.keys)
            if (heir := next(sharers, None)) is not None:
                self._writes.enqueue([(heir.id, key)])
