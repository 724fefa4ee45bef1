"""Which contexts are in CELLS, and how many cells are free.

Law: plain bookkeeping, no decisions. The cells of running contexts are reserved; an idle context has those it fills.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from llmaas.errors import PolicyBug
from llmaas.planner.actions import Action, DropCells
from llmaas.planner.context import Context
from llmaas.records import CHUNK_TOKENS, ContextId


class CellTable:
    """Sequences and cells of all contexts."""

    def __init__(self, n_cells: int, n_seqs: int, *, cuttable: bool = True) -> None:
        """``cuttable`` False: the model keeps one state per sequence, which leaves as a whole or not at all."""
        self.n_cells = n_cells
        self._cuttable = cuttable
        self._reserved = 0
        """Cells of running contexts."""
        self._idle: OrderedDict[ContextId, Context] = OrderedDict()
        """Contexts that have cells and do not run, least recently run first."""
        self._idle_cells = 0
        self._seqs = list(range(n_seqs - 1, -1, -1))
        """Sequences of no context."""

    # -- contexts run and stop

    def start(self, context: Context, reserve: int) -> None:
        """The context runs from now on; it keeps its sequence or gets one, and may fill ``reserve`` cells."""
        if self._idle.pop(context.id, None) is not None:
            self._idle_cells -= context.cells
        if context.seq is None:
            context.seq = self._seqs.pop()
        context.running = True
        self.grow(reserve)

    def stop(self, context: Context, reserve: int) -> None:
        """The context no longer runs; what it has in CELLS stays until another needs the room."""
        self._reserved -= reserve
        context.running = False
        self._idle[context.id] = context
        self._idle_cells += context.cells
        self._release_if_empty(context)

    def grow(self, more: int) -> None:
        """A running context may fill so many more cells. Raises PolicyBug if there are not so many free."""
        self._reserved += more
        if self._free < 0:
            raise PolicyBug(f"cells overcommitted: {self._reserved} reserved, {self._idle_cells} idle")

    def trim(self, context: Context, n: int, out: list[Action]) -> None:
        """Keep at most the first ``n`` tokens of the context in CELLS."""
        if context.seq is None or n >= context.cells:
            return
        n = n if self._cuttable else 0
        out.append(DropCells(context.seq, n))
        if context.id in self._idle:
            self._idle_cells -= context.cells - n
        context.cells = n
        context.lossy = {i for i in context.lossy if i * CHUNK_TOKENS < n}
        self._release_if_empty(context)

    def may_hand_over(self, context: Context, heir: Context, n: int) -> bool:
        """Whether the first ``n`` tokens that an idle context has in CELLS can become those of ``heir``."""
        whole = self._cuttable or n == context.cells
        return context.id in self._idle and heir.seq is None and not heir.running and whole

    def hand_over(self, context: Context, heir: Context, n: int, out: list[Action]) -> None:
        """``heir`` gets the sequence of ``context``, with the first ``n`` tokens, 1 or more; ``context`` has none."""
        self.trim(context, n, out)
        heir.seq, heir.cells, heir.lossy = context.seq, context.cells, context.lossy
        context.seq, context.cells, context.lossy = None, 0, set()
        del self._idle[context.id]
        self._idle[heir.id] = heir

    def lose(self, context: Context, out: list[Action]) -> None:
        """A step of the context failed. A state that cannot be cut may hold part of it: then none of it can stay."""
        if not self._cuttable:
            self.trim(context, 0, out)

    # -- room

    @property
    def _free(self) -> int:
        return self.n_cells - self._reserved - self._idle_cells

    def lacking(self, more: int) -> int:
        """Cells that are lacking for a reservation of ``more`` even if every idle context leaves; 0 or less: none."""
        return more - self._free - self._idle_cells

    def has_seq_for(self, context: Context) -> bool:
        """Whether there is a sequence for it, or will be when an idle context leaves."""
        return context.seq is not None or bool(self._seqs) or bool(self._idle)

    def victims(self, more: int, keep: Context) -> list[Context] | None:
        """Idle contexts that must leave so that ``keep`` can have ``more`` cells and a sequence; None: not enough can.

        A context with unsaved chunks is passed over: a save of them is under way, or will begin when a write ends, so
        waiting for it always ends.
        """
        short = more - self._free
        lacks_seq = keep.seq is None and not self._seqs
        chosen: list[Context] = []
        for context in self._by_need():
            if short <= 0 and not lacks_seq:
                break
            if context is keep or context.committing or context.unsaved:
                continue
            chosen.append(context)
            short -= context.cells
            lacks_seq = False
        return None if short > 0 or lacks_seq else chosen

    def _by_need(self) -> Iterator[Context]:
        """Idle contexts, least needed first.

        First those that no call waits for, least recently run first. Then those of paused calls, last paused first,
        since that one comes back last.
        """
        yield from (context for context in self._idle.values() if not context.wanted)
        yield from [context for context in reversed(self._idle.values()) if context.wanted]

    def _release_if_empty(self, context: Context) -> None:
        if context.cells == 0 and context.seq is not None and not context.running:
            self._idle.pop(context.id, None)
            self._seqs.append(context.seq)
            context.seq = None
            context.lossy.clear()

    def check(self, *, nobody_runs: bool) -> list[str]:
        """Problems found; empty when the books balance."""
        problems = []
        if self._free < 0:
            problems.append(f"cells overcommitted by {-self._free}")
        if nobody_runs and self._reserved:
            problems.append(f"{self._reserved} cells reserved for nobody")
        if self._idle_cells != (found := sum(context.cells for context in self._idle.values())):
            problems.append(f"idle contexts fill {found} cells, not {self._idle_cells}")
        return problems
