"""Switching: how a context's chunks come back into CELLS.

Law: cells are filled in ascending order; after each piece that was loaded or computed the rest is planned anew, by what
the ledger says then. So a chunk that proves damaged, a copy that has gone meanwhile, and a disk that is slower than
expected need no case of their own.

Of a context whose chunks come from another node, what is missing is computed in short pieces, the first ones first,
while the last ones come.

Where reading is slow, chunks are read from DISK into the POOL from the back of what is missing, while the front is
computed (``planner/read_ahead``); what was read stays pinned until it is loaded.

A sequence that cannot be cut comes back by one load of a whole state (``planner/states``).
"""

from __future__ import annotations

from collections.abc import Callable

from llmaas.errors import PolicyBug
from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import Action, ChunkSource, ChunkSpan, LoadChunks, Outcome, StopLoad, Switched
from llmaas.planner.cell_table import CellTable
from llmaas.planner.cost_model import SwitchCosts
from llmaas.planner.events import Fetched, Loaded
from llmaas.planner.jobs import Job, Stage
from llmaas.planner.pool_books import PoolBooks
from llmaas.planner.read_ahead import ReadAhead
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.states import best_state
from llmaas.planner.tally import Tally
from llmaas.records import CHUNK_TOKENS, Tier

_PIECE_S, _LEAST_PIECE = 1.0, 2
"""Seconds of a piece that is computed while chunks come, and the least of its chunks: fewer cost more for each."""


class Switching:
    """The loads under way, and the next piece of every job that is switching."""

    def __init__(
        self,
        settings: PlannerSettings,
        ledger: Ledger,
        books: PoolBooks,
        cells: CellTable,
        reads: ReadAhead,
        costs: SwitchCosts,
        tally: Tally,
        next_id: Callable[[], int],
    ) -> None:
        self._ledger, self._books, self._cells, self._reads = ledger, books, cells, reads
        self._costs, self._tally, self._next_id = costs, tally, next_id
        self._states, self._rules = settings.state is not None, settings.rules
        self._slice = max(1, settings.prefill_slice // CHUNK_TOKENS)
        """Chunks that are recomputed before the rest is planned anew."""
        self._loads: dict[int, tuple[Job, LoadChunks, float]] = {}
        """Each load under way, its job, and when it began."""

    @property
    def idle(self) -> bool:
        """Nothing is being read ahead."""
        return self._reads.idle

    # -- the next piece

    def advance(self, job: Job, now: float, out: list[Action]) -> bool:
        """Begin the next piece of the way back; True if the context is back and its prefill may begin."""
        context, ledger = job.context, self._ledger
        if self._states:
            self._drop_beyond(job, job.goal, out)
        if context.cells >= min(job.covered, job.goal, job.prefill_end):
            self._arrive(job, out)
            return True
        if self._states:
            self._advance_by_state(job, now, out)
            return False
        index, rest = divmod(context.cells, CHUNK_TOKENS)
        if rest and ledger.tier(context.keys[index]) is not Tier.NONE:
            # Part of a chunk is in CELLS and a copy of all of it exists: take the copy.
            self._cells.trim(context, index * CHUNK_TOKENS, out)
            job.from_cells = min(job.from_cells, context.cells)
        chunk = ledger.chunk(context.keys[index])
        if chunk.pool is Copy.ARRIVING:
            return False  # it is being coded or read right now; ask again when it has arrived
        if chunk.tier is Tier.NONE:
            self._compute(job, self._end_of_lost(job, index), now, out)
            return False
        stop = self._end_of_run(job, index, lost=False)
        read = self._reads.plan(job, index, stop, now, out)
        if read is None:
            self._load(job, index, self._reads.in_one_go(context.keys[index:stop]) + index, now, out)
        elif read.first > index:
            self._load(job, index, read.first, now, out)
        else:
            self._compute(job, index + min(read.computed, self._slice), now, out)
        return False

    def _advance_by_state(self, job: Job, now: float, out: list[Action]) -> None:
        """A sequence that cannot be cut goes on from the latest state that has a copy; what is behind is computed."""
        context = job.context
        best = best_state(self._ledger, context, min(job.covered, job.goal))
        if best is None:
            job.begin_recompute(min(job.covered, job.goal, job.prefill_end))
        elif self._ledger.chunk(best.key).pool is not Copy.ARRIVING:
            self._drop_beyond(job, 0, out)  # a state comes into an empty sequence
            sources = self._books.begin_load_of(context, [ChunkSpan(best.key, 0, best.n_tokens)], out)
            self._begin_load(job, sources, now, out)

    def _drop_beyond(self, job: Job, n_tokens: int, out: list[Action]) -> None:
        """Of a sequence with more tokens than that nothing stays in CELLS."""
        if job.context.cells > n_tokens:
            self._cells.trim(job.context, n_tokens, out)
            job.from_cells = min(job.from_cells, job.context.cells)

    def _end_of_run(self, job: Job, index: int, *, lost: bool) -> int:
        """The end of the run of chunks from ``index`` on that are lost, or that have a copy at rest."""
        context, ledger = job.context, self._ledger
        stop, last = index, -(-job.covered // CHUNK_TOKENS)
        while stop < last:
            chunk = ledger.chunk(context.keys[stop])
            if (chunk.tier is Tier.NONE) != lost or (not lost and chunk.pool is Copy.ARRIVING):
                break
            stop += 1
        return stop

    def _end_of_lost(self, job: Job, index: int) -> int:
        """Where to stop computing chunks that are lost. While some of them come, the last ones first, half of them are
        computed at most: what has come until then is loaded."""
        stop = self._end_of_run(job, index, lost=True)
        if not job.context.arriving:
            return stop
        n = max(_LEAST_PIECE, self._costs.slice(index * CHUNK_TOKENS, _PIECE_S) // CHUNK_TOKENS)
        return index + min(n, -(-(stop - index) // 2))

    def _compute(self, job: Job, stop: int, now: float, out: list[Action]) -> None:
        """Compute the chunks before ``stop``; meanwhile some of those behind are read."""
        job.begin_recompute(min(stop * CHUNK_TOKENS, job.covered, job.goal))
        self._read_on(job, now, out)

    def _read_on(self, job: Job, now: float, out: list[Action]) -> None:
        """While the job computes: keep reading what lies behind."""
        last = -(-job.covered // CHUNK_TOKENS)
        first = -(-job.until // CHUNK_TOKENS)
        if job.stage is Stage.RECOMPUTING and first < last:
            self._reads.plan(job, first, last, now, out)

    def _load(self, job: Job, first: int, stop: int, now: float, out: list[Action]) -> None:
        self._begin_load(job, self._books.begin_load(job.context, first, stop, out), now, out)

    def _begin_load(self, job: Job, sources: tuple[ChunkSource, ...], now: float, out: list[Action]) -> None:
        context = job.context
        assert context.seq is not None
        load = LoadChunks(self._next_id(), context.id, context.seq, sources)
        self._loads[load.load] = (job, load, now)
        job.begin_load()
        out.append(load)

    def _arrive(self, job: Job, out: list[Action]) -> None:
        self._cells.trim(job.context, job.goal, out)
        job.arrive()
        self._tally.switches += 1
        self._tally.tokens_from_cells += job.from_cells
        self._tally.tokens_from_pool += job.from_pool
        self._tally.tokens_from_disk += job.from_disk
        self._tally.tokens_recomputed += job.recomputed
        out.append(Switched(job.request, job.from_cells, job.from_pool, job.from_disk, job.recomputed))

    # -- what comes of it

    def loaded(self, event: Loaded, now: float, out: list[Action]) -> tuple[Job, Outcome | None]:
        """A load ended: its job, and how that ends, if it does. One that stops short without damage cannot go on."""
        if event.load not in self._loads:
            raise PolicyBug(f"load {event.load} ended but was not under way")
        job, load, began = self._loads.pop(event.load)
        complete = event.n_loaded == len(load.chunks)
        if complete:
            self._learn(load, now - began)
        self._books.end_load(load, event, job.held, now, out)
        for source in load.chunks[: event.n_loaded]:
            _count(job, source, coded=not self._states)
        job.end_load()
        if job.ending is None and not complete and not event.damaged:
            return job, Outcome.ENGINE_FAILED
        return job, job.ending

    def fetched(self, event: Fetched, now: float, out: list[Action]) -> None:
        """A piece was read ahead: go on reading."""
        self._read_on(self._reads.fetched(event, now, out), now, out)

    def stop(self, job: Job, out: list[Action]) -> None:
        """The job has no more use for what is being loaded for it: have the load answered soon."""
        out += [StopLoad(number) for number, (of, _, _) in self._loads.items() if of is job]

    def release(self, job: Job, out: list[Action]) -> None:
        """The job has no more use for what was read ahead for it."""
        self._books.release(job.held, out)

    def _learn(self, load: LoadChunks, seconds: float) -> None:
        """Learn from the load's duration: the cost of reading if some of it was read, else that of decoding."""
        nbytes = dict.fromkeys((Tier.POOL, Tier.DISK), 0)
        for source in load.chunks:
            chunk = self._ledger.chunk(source.key)
            nbytes[source.tier] += chunk.pool_bytes if source.tier is Tier.POOL else chunk.disk_bytes
        if not nbytes[Tier.DISK]:
            self._costs.observe_place(nbytes[Tier.POOL], seconds)
        elif self._rules > 1:
            self._costs.observe_read(nbytes[Tier.DISK], seconds - self._costs.place_more(nbytes[Tier.POOL]))
        elif seconds > 2 * self._costs.place(nbytes[Tier.DISK] + nbytes[Tier.POOL]) or not nbytes[Tier.POOL]:
            self._costs.observe_read(nbytes[Tier.DISK], seconds)


def _count(job: Job, source: ChunkSource, *, coded: bool) -> None:
    """The chunk is in CELLS. ``coded``: chunks are coded, unless they are partial."""
    n = source.stop - source.start
    if n == CHUNK_TOKENS and coded:  # a partial chunk is kept lossless
        job.context.lossy.add(source.start // CHUNK_TOKENS)
    job.context.cells = source.stop
    if source.tier is Tier.POOL and source.key not in job.read:
        job.from_pool += n
    else:
        job.from_disk += n
