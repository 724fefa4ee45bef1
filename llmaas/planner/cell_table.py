"""Which contexts are in CELLS, and how many cells are free.

Law: plain bookkeeping, no decisions. The cells of running contexts are reserved; an idle context has those it fills.
"""

from __future__ import annotations

from collections import OrderedDict

from llmaas.errors import PolicyBug
from llmaas.planner.actions import Action, DropCells
from llmaas.planner.context import Context
from llmaas.records import CHUNK_TOKENS, ContextId


class CellTable:
    """Who is in CELLS. Running contexts hold a reservation, idle ones what they have."""

    def __init__(self, n_cells: int, n_seqs: int, *, cuttable: bool = True) -> None:
        """``cuttable`` False: the model keeps one state per sequence, which leaves as a whole or not at all."""
        self.n_cells = n_cells
        self._cuttable = cuttable
        self.reserved = 0
        self.idle: OrderedDict[ContextId, Context] = OrderedDict()
        """Resident and not running, least recently run first."""
        self.idle_cells = 0
        self._seqs = list(range(n_seqs - 1, -1, -1))

    @property
    def free(self) -> int:
        return self.n_cells - self.reserved - self.idle_cells

    def start(self, context: Context, reserve: int) -> None:
        """The context runs now; it keeps or gets a sequence."""
        if self.idle.pop(context.id, None) is not None:
            self.idle_cells -= context.cells
        if context.seq is None:
            context.seq = self._seqs.pop()
        context.running = True
        self.reserved += reserve
        if self.free < 0:
            raise PolicyBug(f"cells overcommitted: {self.reserved} reserved, {self.idle_cells} idle")

    def stop(self, context: Context, reserve: int) -> None:
        """The context no longer runs; what it has in CELLS stays until someone needs the room."""
        self.reserved -= reserve
        context.running = False
        self.idle[context.id] = context
        self.idle_cells += context.cells
        self._release_if_empty(context)

    def grow(self, more: int) -> None:
        """A running context may fill so many more cells."""
        self.reserved += more
        if self.free < 0:
            raise PolicyBug(f"cells overcommitted: {self.reserved} reserved, {self.idle_cells} idle")

    def short(self, need: int, keep: Context) -> int:
        """Cells that are lacking for ``need`` more even when every idle context has left."""
        mine = keep.cells if keep.id in self.idle else 0
        return need - self.free - (self.idle_cells - mine)

    def seq_for(self, context: Context) -> bool:
        """Whether there is a sequence for it, or will be when idle contexts have left."""
        return context.seq is not None or bool(self._seqs) or bool(self.idle)

    def trim(self, context: Context, n: int, out: list[Action]) -> None:
        """Keep at most the first ``n`` tokens of the context in CELLS."""
        if context.seq is None or n >= context.cells:
            return
        n = n if self._cuttable else 0
        out.append(DropCells(context.seq, n))
        if context.id in self.idle:
            self.idle_cells -= context.cells - n
        context.cells = n
        context.lossy = {i for i in context.lossy if i * CHUNK_TOKENS < n}
        self._release_if_empty(context)

    def victims(self, need: int, keep: Context) -> list[Context] | None:
        """Idle contexts to drop for ``need`` more free cells (and one sequence), or None.

        Those that nobody waits for first, least recently run first; then whoever was paused last, since it comes back
        last. One with unsaved chunks is passed over: a save is under way or will begin when a write ends, so waiting
        for it always ends.
        """
        short = need - self.free
        want_seq = keep.seq is None and not self._seqs
        if short <= 0 and not want_seq:
            return []
        chosen: list[Context] = []
        wanted = [context for context in reversed(self.idle.values()) if context.wanted]
        for context in (*(c for c in self.idle.values() if not c.wanted), *wanted):
            if short <= 0 and not want_seq:
                break
            if context is keep or context.committing or context.unsaved:
                continue
            chosen.append(context)
            short -= context.cells
            want_seq = False
        return None if short > 0 or want_seq else chosen

    def _release_if_empty(self, context: Context) -> None:
        if context.cells == 0 and context.seq is not None and not context.running:
            self.idle.pop(context.id, None)
            self._seqs.append(context.seq)
            context.seq = None
            context.lossy.clear()
