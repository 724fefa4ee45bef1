"""The save queue: chunks that are in CELLS as computed and have no copy yet.

Law: a chunk is saved to the POOL after the call that made it. It waits for a measurement of its sensitivity if there is
time for one. One batch of one context is saved at a time, and more while a call waits for their cells. A chunk for
which there is no room stays unsaved: its tokens remain. Of a model whose sequences cannot be cut the state of the whole
sequence is saved, under the key of its last chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from llmaas.errors import PolicyBug
from llmaas.kvchunks.codec.codec import sinks_at
from llmaas.kvchunks.codec.states import coded_state_size
from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.planner.actions import Action, ChunkSpan, ChunkTarget, MeasureChunks, PersistSensitivity, SaveChunks
from llmaas.planner.bit_budget import BitBudget
from llmaas.planner.context import Context
from llmaas.planner.events import Measured, Saved
from llmaas.planner.pool_books import PoolBooks
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.tally import Tally
from llmaas.planner.write_back import WriteBack
from llmaas.records import CHUNK_TOKENS, LOSSLESS, ChunkKey, Precision, Tier

_MOST_HURRIED = 4
"""Saves under way while a call waits for cells: each holds its chunks in f16 until they are coded."""


class _Wanted(NamedTuple):
    """A chunk to save: the ``nth`` of its context."""

    context: Context
    nth: int
    key: ChunkKey


class SaveQueue:
    """What waits to be saved, waits for a measurement before that, or is being saved."""

    def __init__(
        self,
        settings: PlannerSettings,
        ledger: Ledger,
        books: PoolBooks,
        bits: BitBudget,
        writes: WriteBack,
        encoded_size: Callable[[int, Precision, int], int],
        tally: Tally,
        next_id: Callable[[], int],
    ) -> None:
        self._settings, self._ledger, self._books, self._bits, self._writes = settings, ledger, books, bits, writes
        self._encoded_size, self._tally, self._next_id = encoded_size, tally, next_id
        self._waiting: deque[_Wanted] = deque()
        self._measuring: dict[int, tuple[Context, list[_Wanted]]] = {}
        """What waits for each measurement that is under way, all of one context."""
        self._under_way: dict[int, tuple[SaveChunks, Context]] = {}
        """By their numbers."""
        self._most_hurried = _MOST_HURRIED if settings.rules > 1 else 1

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._measuring and not self._under_way

    # -- chunks that are to be saved

    def enqueue(self, context: Context, out: list[Action]) -> None:
        """A call has returned: every chunk of its context that has no copy is to be saved."""
        self.hurry(context)
        n_tokens = min(context.cells, context.n_kv)
        n_chunks = -(-n_tokens // CHUNK_TOKENS)
        first = max(0, n_chunks - 1) if self._settings.state is not None else 0
        wanted = [
            _Wanted(context, i, context.keys[i])
            for i in range(first, n_chunks)
            if self._savable(context, i, context.keys[i])
        ]
        context.unsaved += len(wanted)
        if self._settings.measure and any(chunk.nth < n_tokens // CHUNK_TOKENS for chunk in wanted):
            self._measure(context, n_tokens, wanted, out)
        else:
            self._waiting.extend(wanted)

    def _measure(self, context: Context, n_tokens: int, wanted: list[_Wanted], out: list[Action]) -> None:
        """How many bits chunks need shows only in what attention makes of them."""
        assert context.seq is not None
        starts = range(0, n_tokens, CHUNK_TOKENS)
        spans = (ChunkSpan(k, s, min(s + CHUNK_TOKENS, n_tokens)) for k, s in zip(context.keys, starts, strict=False))
        action = MeasureChunks(self._next_id(), context.id, context.seq, tuple(spans))
        self._measuring[action.measure] = context, wanted
        out.append(action)

    def measured(self, event: Measured, now: float, out: list[Action]) -> None:
        """A measurement ended. What waited for it is saved; what is on DISK of its chunks is brought up to date."""
        changed = []
        for key, found in event.scores:
            if key not in self._ledger:
                continue
            self._bits.learn(key, found, now)
            on_disk = self._ledger.chunk(key).disk is Copy.PRESENT
            if on_disk and (sensitivity := self._bits.changed_sensitivity(key)) is not None:
                changed.append((key, sensitivity))
        if changed:
            out.append(PersistSensitivity(tuple(changed)))
        if event.measure in self._measuring:
            self._waiting.extend(self._measuring.pop(event.measure)[1])

    def hurry(self, context: Context | None = None) -> bool:
        """Let chunks, of one context or of all, no longer wait for measurements; False if none did.

        What comes of the measurements still serves later decisions.
        """
        late = [m for m, (of, _) in self._measuring.items() if context is None or of is context]
        for measure in late:
            self._waiting.extend(self._measuring.pop(measure)[1])
        return bool(late)

    def _savable(self, context: Context, index: int, key: ChunkKey) -> bool:
        """Whether the chunk still is where it was, all in CELLS as computed, without a copy anywhere."""
        if index >= len(context.keys) or context.keys[index] != key or index in context.lossy:
            return False
        chunk, end = self._ledger.chunk(key), context.end_of(index)
        whole = end <= context.cells if self._settings.state is None else end == context.cells
        return whole and chunk.tier is Tier.NONE and not chunk.moving

    # -- saves

    def pump(self, now: float, out: list[Action], most: int = 1) -> None:
        """Begin saves, each of chunks of one context, until ``most`` are under way."""
        while len(self._under_way) < most and self._begin_one(now, out):
            pass

    def pump_hurried(self, now: float, out: list[Action]) -> bool:
        """A call waits for cells, which are free as soon as what they hold was copied: begin more saves than else.
        False if there is nothing to begin."""
        hurried = self.hurry()
        before = len(self._under_way)
        self.pump(now, out, self._most_hurried)
        return hurried or len(self._under_way) > before

    def _begin_one(self, now: float, out: list[Action]) -> bool:
        """False if nothing waits that can be saved now."""
        batch: list[ChunkTarget] = []
        owner: Context | None = None
        while self._waiting and len(batch) < self._settings.save_batch:
            wanted = self._waiting[0]
            if batch and wanted.context is not owner:
                break
            if self._savable(*wanted):
                target = self._reserve(wanted, now, out)
                if target is not None:
                    batch.append(target)
                    owner = wanted.context
                elif batch or self._writes.under_way or self._under_way:
                    break  # room comes when the write ends, or what is being saved is written
                else:
                    self._tally.chunks_unsaved += 1
            self._waiting.popleft()
            wanted.context.unsaved -= 1
        if owner is None:
            return False
        assert owner.seq is not None
        save = SaveChunks(self._next_id(), owner.id, owner.seq, tuple(batch))
        self._under_way[save.save] = save, owner
        out.append(save)
        return True

    def _reserve(self, wanted: _Wanted, now: float, out: list[Action]) -> ChunkTarget | None:
        """The chunk's precision, and its room in the POOL; None if there is none."""
        start = wanted.nth * CHUNK_TOKENS
        stop = wanted.context.end_of(wanted.nth)
        if (state := self._settings.state) is not None:
            start, precision, nbytes = 0, LOSSLESS, coded_state_size(state.of(stop))
        else:
            precision = self._bits.choose(wanted.key, stop - start, now)
            nbytes = self._encoded_size(stop - start, precision, sinks_at(start))
        if not self._books.begin_save(wanted.key, nbytes, out):
            return None
        return ChunkTarget(wanted.key, start, stop, precision)

    def saved(self, event: Saved, now: float, out: list[Action]) -> None:
        """The save ended."""
        if event.save not in self._under_way:
            raise PolicyBug(f"save {event.save} ended but was not under way")
        save, owner = self._under_way.pop(event.save)
        self._books.end_save(save, event, now, out)
        if owner.seq is None:  # it has left CELLS, or was closed, while its last chunk was being coded
            self._writes.left_cells(owner.id)
