"""Reading ahead: chunks that go from DISK to the POOL while the front of their context is computed.

Law: a hole is a run of chunks that are on DISK only. It is read from its back, in pieces of a fraction of a second, and
how far the front is computed instead is decided anew for each piece, by the costs learned so far and by how late the
present piece is. What was read stays pinned until it is loaded or its job ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from llmaas.errors import PolicyBug
from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.actions import Action, FetchChunks
from llmaas.planner.cost_model import SwitchCosts
from llmaas.planner.events import FAILED, Fetched
from llmaas.planner.jobs import Job
from llmaas.planner.pool_books import PoolBooks
from llmaas.policies.split import Hole, SplitPolicy
from llmaas.records import CHUNK_TOKENS, ChunkKey, Tier

_PIECE_S = 0.3
"""Seconds that one read should take at most: until it has ended, nothing can be decided anew."""
_FIRST = 4
"""Chunks of the very first piece: nothing is known of the disk then."""
_UNDER_WAY = 2
"""Pieces of a job under way at once: one that the disk is busy with, and one so that the disk never waits."""


class ReadPart(NamedTuple):
    """The hole that begins at chunk ``first``: its first ``computed`` chunks are better computed than read."""

    first: int
    computed: int


class _Piece(NamedTuple):
    action: FetchChunks
    job: Job
    first: int
    """Index of its first chunk in the context."""
    nbytes: int
    asked: float


class ReadAhead:
    """All pieces under way, in the order in which they are read."""

    def __init__(
        self, ledger: Ledger, books: PoolBooks, split: SplitPolicy, costs: SwitchCosts, next_id: Callable[[], int]
    ) -> None:
        self._ledger, self._books, self._split, self._costs = ledger, books, split, costs
        self._next_id = next_id
        self._pieces: dict[int, _Piece] = {}
        self._arrived = 0.0
        """When the last piece arrived."""

    @property
    def idle(self) -> bool:
        return not self._pieces

    def plan(self, job: Job, first: int, stop: int, now: float, out: list[Action]) -> ReadPart | None:
        """Begin to read the back of the first hole among chunks first .. stop-1, if its front should be computed.

        None if there is no hole, or reading all of it is best done on the way into CELLS.
        """
        hole = self._hole(job, first, stop)
        if not hole:
            return None
        begin, keys = hole[0], job.context.keys[hole[0] : hole[1]]
        costs = self._price(begin, keys, now)
        n = self._split.split(costs)
        if n == 0:
            return None
        if n < len(keys) and not self._read_back(job, job.context.keys[first:stop], keys[n:], now, out):
            # The POOL has no room to read into: all of one, or all of the other.
            n = len(keys) if costs.compute[-1] < costs.seconds(0) else 0
        return ReadPart(begin, n) if n else None

    def in_one_go(self, keys: Sequence[ChunkKey]) -> int:
        """How many of these chunks to load in one piece: all, unless the disk takes long for them; at least one."""
        ledger, nbytes = self._ledger, 0
        for i, key in enumerate(keys):
            chunk = ledger.chunk(key)
            if chunk.tier is not Tier.DISK:
                continue
            nbytes += chunk.disk_bytes
            if i and self._costs.read(1, nbytes) > _PIECE_S:
                return i
            if i == _FIRST and nbytes and not self._costs.disk_known:
                return i
        return len(keys)

    def _hole(self, job: Job, first: int, stop: int) -> tuple[int, int] | None:
        ledger, keys = self._ledger, job.context.keys
        inside = [ledger.chunk(key).to_read for key in keys[first:stop]]
        if True not in inside:
            return None
        begin = inside.index(True)
        end = inside.index(False, begin) if False in inside[begin:] else len(inside)
        return first + begin, first + end

    def _price(self, begin: int, keys: Sequence[ChunkKey], now: float) -> Hole:
        pending, late = self._pending(now)
        start = begin * CHUNK_TOKENS
        sizes = [self._ledger.chunk(key).disk_bytes for key in keys]
        behind = list(accumulate(reversed(sizes), initial=0))
        costs = self._costs
        return Hole(
            compute=[costs.compute(start, start + n * CHUNK_TOKENS) for n in range(len(keys) + 1)],
            read=[pending + late * costs.read(min(n, 1), nbytes) for n, nbytes in enumerate(behind)],
            place=[costs.place(nbytes) for nbytes in behind],
        )

    def _pending(self, now: float) -> tuple[float, float]:
        """Seconds until the pieces under way have arrived, and how much slower the disk is now than it was."""
        if not self._pieces:
            return 0.0, 1.0
        expected = [self._costs.read(1, piece.nbytes) for piece in self._pieces.values()]
        elapsed = now - self._began(next(iter(self._pieces.values())))
        late = max(1.0, elapsed / expected[0])
        return late * sum(expected) - elapsed, late

    def _began(self, piece: _Piece) -> float:
        """When the disk began with this piece, the first under way."""
        return max(piece.asked, self._arrived)

    def _read_back(
        self, job: Job, run: Sequence[ChunkKey], keys: Sequence[ChunkKey], now: float, out: list[Action]
    ) -> bool:
        """Read ``keys``, which are the end of ``run``. Making room for them must not cost the job any of ``run``."""
        with self._books.pinned(run):
            return self._read(job, keys, now, out)

    def _read(self, job: Job, keys: Sequence[ChunkKey], now: float, out: list[Action]) -> bool:
        """Ask for pieces from the back; False if the POOL has no room for any."""
        while keys and sum(piece.job is job for piece in self._pieces.values()) < _UNDER_WAY:
            backwards = keys[::-1]
            taken = []
            for key in backwards[: self.in_one_go(backwards)]:
                if not self._books.begin_fetch(key, out):
                    break
                taken.append(key)
            if not taken:
                return bool(job.read)
            taken.reverse()
            action = FetchChunks(self._next_id(), job.context.id, tuple(taken))
            nbytes = sum(self._ledger.chunk(key).disk_bytes for key in taken)
            self._pieces[action.fetch] = _Piece(action, job, job.context.keys.index(taken[0]), nbytes, now)
            job.read.update(taken)
            out.append(action)
            keys = keys[: len(keys) - len(taken)]
        return True

    def fetched(self, event: Fetched, now: float, out: list[Action]) -> Job:
        """A piece arrived, or a part of it did. The job that it is for."""
        if event.fetch not in self._pieces:
            raise PolicyBug(f"fetch {event.fetch} ended but was not under way")
        piece = self._pieces.pop(event.fetch)
        job = piece.job
        if FAILED not in event.outcomes:
            self._costs.observe_read(piece.nbytes, now - self._began(piece))
        self._arrived = now
        behind = job.context.n_kv - piece.first * CHUNK_TOKENS
        tokens = [max(1, min(CHUNK_TOKENS, behind - i * CHUNK_TOKENS)) for i in range(len(piece.action.keys))]
        held = job.held if job.in_cells else None
        self._books.end_fetch(piece.action, event, tokens, held, now, out)
        return job
