"""The context table: all contexts, and what happens to them between calls.

Law: which chunks a context has is said by events (a call returned, a truncation, a fork, a restart), never guessed.
Work per event does not grow with idle contexts, except at start and when a context closes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile

from llmaas.errors import assert_never
from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.actions import Action, DropDisk
from llmaas.planner.cell_table import CellTable
from llmaas.planner.context import Context
from llmaas.planner.events import ChunksCame, ChunksFound, ContextChanged, ContextClosed, ContextEvent, ContextOpened
from llmaas.planner.pool_books import PoolBooks
from llmaas.planner.states import EarlierStates, best_state
from llmaas.planner.swap_out import SwapOut
from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextId, Tier


class ContextTable:
    """Contexts by their id."""

    def __init__(
        self, ledger: Ledger, books: PoolBooks, cells: CellTable, swap_out: SwapOut, *, states: bool = False
    ) -> None:
        """``states``: whole states are kept, no chunks of rows."""
        self._ledger, self._books, self._cells, self._swap_out = ledger, books, cells, swap_out
        self._states = EarlierStates(ledger) if states else None
        self._contexts: dict[ContextId, Context] = {}

    def use(self, context_id: ContextId) -> Context:
        """A call wants the context."""
        context = self._contexts[context_id]
        context.calls += 1
        self._books.use(context)
        return context

    def handle(self, event: ContextEvent, now: float, out: list[Action]) -> None:
        match event:
            case ContextChanged():
                self._changed(event, out)
            case ContextOpened():
                self._opened(event, now, out)
            case ContextClosed():
                self._closed(event, out)
            case ChunksFound():
                self._found(event, out)
            case ChunksCame():
                self._came(event, out)
            case _:
                assert_never(event)

    def _opened(self, event: ContextOpened, now: float, out: list[Action]) -> None:
        context = Context(event.context, event.app, [], event.n_kv, idle_since=now - event.idle)
        self._contexts[event.context] = context
        context.rests = True
        self._books.set_keys(context, 0, event.keys, out)
        if event.coldest:
            self._books.make_coldest(context)
        self._books.found(context, event.found, out)

    def _changed(self, event: ContextChanged, out: list[Action]) -> None:
        context = self._contexts[event.context]
        context.committing = context.arriving = False
        self._cells.trim(context, _cells_to_keep(context, event.n_kv), out)
        if self._states is not None:
            self._states.before_change(context, event.first, event.keys, event.n_kv)
        context.n_kv = event.n_kv
        self._books.set_keys(context, event.first, event.keys, out)
        if self._states is not None:
            self._books.sweep(self._states.after_change(context), out)
        self._books.found(context, event.found, out)
        self._swap_out.context_changed(context, out)

    def _closed(self, event: ContextClosed, out: list[Action]) -> None:
        context = self._contexts.pop(event.context)
        heir = self._hand_over_cells(context, out)
        self._cells.trim(context, 0, out)
        context.n_kv = 0
        self._books.set_keys(context, 0, (), out)
        if self._states is not None:
            self._books.sweep(self._states.closed(context), out)
        self._swap_out.closed(context, self._contexts.values())
        if heir is not None:
            self._swap_out.context_changed(heir, out)
        self._books.closed(context.id, event.gone, out)

    def _hand_over_cells(self, context: Context, out: list[Action]) -> Context | None:
        """Give what a context that closes has in CELLS to the one that begins with most of it and has nothing there,
        as the origin of a fork has that computed nothing itself."""
        heir, most = None, 0
        if not context.cells or not context.keys:
            return None
        for other in self._contexts.values():
            if other.keys[:1] != context.keys[:1]:
                continue
            n = min(n_shared(context, other), context.cells)
            if n > most and self._cells.may_hand_over(context, other, n):
                heir, most = other, n
        if heir is not None:
            self._cells.hand_over(context, heir, most, out)
        return heir

    def _found(self, event: ChunksFound, out: list[Action]) -> None:
        stored = {chunk[0]: chunk for chunk in event.chunks}
        for context in self._contexts.values():
            self._books.found(context, [stored.pop(key) for key in context.keys if key in stored], out)
        if stored:  # no context contains them
            out.append(DropDisk(tuple(stored)))

    def _came(self, event: ChunksCame, out: list[Action]) -> None:
        context = self._contexts[event.context]
        context.arriving = True
        # First: DISK may have let its chunks go. What comes to a context that keeps none could never be dropped again.
        self._books.use(context)
        self._books.found(context, event.chunks, out)

    def known(self, ids: Iterable[ContextId]) -> Iterator[Context]:
        """Those of the contexts that there are."""
        return (self._contexts[one] for one in ids if one in self._contexts)

    def step_failed(self, context: Context, out: list[Action]) -> None:
        """The engine could not run a step of the context."""
        self._cells.lose(context, out)

    # -- what others may know

    def last_chunks(self) -> dict[ChunkKey, ContextId]:
        """The last chunk of each context; of one that several end with, any of them."""
        return {context.keys[-1]: context.id for context in self._contexts.values() if context.keys}

    @property
    def cells_used(self) -> int:
        return sum(c.cells for c in self._contexts.values() if c.seq is not None)

    def tiers(self, context_id: ContextId, n_tokens: int | None = None) -> tuple[int, int, int, int]:
        """Of the context's tokens, or its first ``n_tokens``: those whose best copy is in CELLS, POOL, DISK, NONE."""
        context = self._contexts[context_id]
        end = context.n_kv if n_tokens is None else min(n_tokens, context.n_kv)
        count = [0, 0, 0, 0]
        if self._states is not None:
            count[Tier.CELLS] = in_cells = min(end, context.cells)
            if (best := best_state(self._ledger, context, end)) is not None:
                count[self._ledger.tier(best.key)] += best.n_tokens - in_cells
            count[Tier.NONE] += end - sum(count)
            return count[0], count[1], count[2], count[3]
        for i, key in enumerate(context.keys):
            start = i * CHUNK_TOKENS
            n = max(0, min(start + CHUNK_TOKENS, end) - start)
            in_cells = max(0, min(n, context.cells - start))
            count[Tier.CELLS] += in_cells
            count[self._ledger.tier(key)] += n - in_cells
        return count[0], count[1], count[2], count[3]

    def check(self, *, at_rest: bool) -> list[str]:
        """Problems found; empty when the books balance. ``at_rest``: no chunk is on its way to the POOL or to DISK."""
        problems = self._books.check(list(self._contexts.values()))
        refs: dict[ChunkKey, int] = {}
        for context in self._contexts.values():
            for key in (*context.keys, *(state.key for state in context.earlier)):
                refs[key] = refs.get(key, 0) + 1
            if len(context.keys) != -(-context.n_kv // CHUNK_TOKENS):
                problems.append(f"context {context.id}: {len(context.keys)} chunks for {context.n_kv} tokens")
            if context.cells and context.seq is None:
                problems.append(f"context {context.id}: cells without a sequence")
        for key in refs:
            if self._ledger.chunk(key).refs != refs[key]:
                problems.append(f"chunk {key.hex()}: wrong reference count")
        if len(refs) != len(self._ledger) and at_rest:
            problems.append(f"{len(self._ledger) - len(refs)} chunks belong to no context")
        return problems


def n_shared(a: Context, b: Context) -> int:
    """How many leading tokens two contexts have the same chunks for."""
    n_chunks = sum(1 for _ in takewhile(lambda keys: keys[0] == keys[1], zip(a.keys, b.keys, strict=False)))
    return min(n_chunks * CHUNK_TOKENS, a.n_kv, b.n_kv)


def _cells_to_keep(context: Context, n: int) -> int:
    """Cells to keep of ``n`` tokens. What remains of a chunk that came back coded cannot stay.

    It will grow into another chunk, and coding it again would code decoded values.
    """
    index, rest = divmod(n, CHUNK_TOKENS)
    return index * CHUNK_TOKENS if rest and index in context.lossy else n
