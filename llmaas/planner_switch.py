"""F4. Switching: how a context's chunks come back into CELLS.

Law: segments are brought back in ascending order, one at a time, and after each the rest is planned anew; so a chunk
that proves damaged, or a copy that has gone meanwhile, needs no case of its own.
"""

from __future__ import annotations

from llmaas.events import Action, ChunkSource, LoadChunks, Loaded, Switched
from llmaas.planner_state import Cells, Context, Job, Stage, Tally
from llmaas.planner_swap import SwapBooks
from llmaas.policies.split import SplitPolicy, Way
from llmaas.records import CHUNK_TOKENS, Tier


class Switching:
    """The loads under way, and the next segment of every job that is switching."""

    def __init__(self, swap: SwapBooks, cells: Cells, split: SplitPolicy, tally: Tally) -> None:
        self._swap, self._cells, self._split, self._tally = swap, cells, split, tally
        self._loads: dict[int, tuple[Job, LoadChunks]] = {}

    def advance(self, job: Job, now: float, out: list[Action]) -> bool:
        """Begin the next segment of the way back; True if the context is back and its prefill may begin."""
        context = job.context
        covered = min(context.n_kv, job.n_total)
        if context.cells >= min(covered, job.goal):
            self._arrive(job, out)
            return True
        index, rest = divmod(context.cells, CHUNK_TOKENS)
        ledger = self._swap.ledger
        if rest and ledger.tier(context.keys[index]) is not Tier.NONE:
            # Part of a chunk is in CELLS and a copy of all of it exists: take the copy.
            self._cells.trim(context, index * CHUNK_TOKENS, out)
            job.from_cells = min(job.from_cells, context.cells)
        first = ledger.chunk(context.keys[index])
        if first.tier is Tier.NONE and first.moving:
            return False  # it is being coded right now; its arrival brings us back here
        last = -(-covered // CHUNK_TOKENS)
        segment = self._split.plan([ledger.tier(key) for key in context.keys[index:last]])[0]
        if segment.way is Way.LOAD:
            self._load(job, index, index + segment.stop, now, out)
        else:
            job.until = min((index + segment.stop) * CHUNK_TOKENS, covered, job.goal)
            job.stage = Stage.RECOMPUTING
        return False

    def _load(self, job: Job, first: int, stop: int, now: float, out: list[Action]) -> None:
        context, ledger = job.context, self._swap.ledger
        keys = context.keys[first:stop]
        for key in keys:
            ledger.pin(key)  # all of them first, so that none evicts another
        sources = []
        for i, key in enumerate(keys, start=first):
            tier = ledger.tier(key)
            keep = tier is Tier.DISK and self._swap.reserve_copy(key, now, out)
            start = i * CHUNK_TOKENS
            sources.append(ChunkSource(key, start, min(start + CHUNK_TOKENS, context.n_kv), tier, keep))
        assert context.seq is not None
        load = LoadChunks(self._swap.next_id(), context.id, context.seq, tuple(sources))
        self._loads[load.load] = (job, load)
        job.stage = Stage.LOADING
        out.append(load)

    def loaded(self, event: Loaded, now: float, out: list[Action]) -> tuple[Job, bool]:
        """A load ended: its job, and whether that can go on (a load that stops short without damage cannot)."""
        job, load = self._loads.pop(event.load)
        damaged = frozenset(event.damaged)
        for i, source in enumerate(load.chunks):
            ok = i < event.n_loaded
            self._swap.loaded(source, ok=ok, damaged=source.key in damaged, now=now, out=out)
            if ok:
                _count(job, job.context, source)
        job.stage = Stage.SWITCHING
        return job, event.n_loaded == len(load.chunks) or bool(damaged)

    def _arrive(self, job: Job, out: list[Action]) -> None:
        self._cells.trim(job.context, job.goal, out)
        job.stage = Stage.PREFILLING
        self._tally.switches += 1
        self._tally.tokens_from_cells += job.from_cells
        self._tally.tokens_from_pool += job.from_pool
        self._tally.tokens_from_disk += job.from_disk
        self._tally.tokens_recomputed += job.recomputed
        out.append(Switched(job.request, job.from_cells, job.from_pool, job.from_disk, job.recomputed))


def _count(job: Job, context: Context, source: ChunkSource) -> None:
    n = source.stop - source.start
    if n == CHUNK_TOKENS:  # a partial chunk is kept lossless
        context.lossy.add(source.start // CHUNK_TOKENS)
    context.cells = source.stop
    if source.tier is Tier.POOL:
        job.from_pool += n
    else:
        job.from_disk += n
