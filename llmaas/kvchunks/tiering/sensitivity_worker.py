"""The meter: measures what chunks in CELLS would lose by being coded, in the background.

Law: it decides nothing and holds nobody up. Chunks are exported one by one between the engine's steps and worked on by
one thread of low CPU priority; a context's f16 KV is never in memory at once. Whatever goes wrong, the answer comes,
with fewer chunks in it or none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from llmaas.engine.thread import EngineThread, lower_cpu_priority
from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.kvchunks.codec.sensitivity import FEWEST, REFERENCE, Scorer
from llmaas.planner.actions import ChunkSpan, MeasureChunks
from llmaas.planner.events import Measured
from llmaas.records import CHUNK_TOKENS, ChunkKey, ChunkSensitivity, KvSlab, Queries

T = TypeVar("T")
Score = tuple[ChunkKey, ChunkSensitivity]

log = logging.getLogger(__name__)


class Stale(Exception):
    """The cells that were being measured have gone."""


class SensitivityWorker:
    """``measure`` returns at once."""

    def __init__(self, engine: EngineThread, codec: Codec) -> None:
        self._engine = engine
        self._codec = codec
        self._worker = ThreadPoolExecutor(1, "measure", lower_cpu_priority)
        self._current: dict[int, int] = {}
        """Of each sequence: the measurement that may still look at its cells."""

    def close(self) -> None:
        """End the thread; what is being measured is given up."""
        self._current.clear()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def stop(self, seq: int) -> None:
        """Cells of the sequence are about to be dropped: look at them no more."""
        self._current.pop(seq, None)

    def measure(self, action: MeasureChunks, done: Callable[[Measured], None]) -> None:
        """Begin a measurement; ``done`` is called on the worker thread."""
        self._current[action.seq] = action.measure
        self._worker.submit(self._measure, action, done)

    def _measure(self, action: MeasureChunks, done: Callable[[Measured], None]) -> None:
        scores: list[Score] = []
        try:
            self._score(action, scores)
        except Stale:
            log.debug("measurement %d was overtaken", action.measure)
        except Exception:
            log.exception("measurement %d failed; its chunks are coded as others are", action.measure)
        done(Measured(action.measure, tuple(scores)))

    def _score(self, action: MeasureChunks, scores: list[Score]) -> None:
        queries = self._ask(action, self._look)
        if queries is None or len(queries.positions) < FEWEST:
            return
        n = int(np.searchsorted(queries.positions, action.chunks[-1].stop))
        queries = Queries(queries.positions[:n], queries.values[:n])
        scorer = Scorer(self._codec.geometry, queries, windows=self._engine.engine.windows)
        for span in action.chunks:
            scorer.add(span.start, self._export(action, span))
        for span in action.chunks:
            if span.stop - span.start < CHUNK_TOKENS:
                continue  # it is kept lossless until it is full
            slab = self._export(action, span)
            found = scorer.measure(span.start, slab, self._coded(span, slab))
            if found is not None:
                scores.append((span.key, found))

    def _coded(self, span: ChunkSpan, slab: KvSlab) -> KvSlab:
        """The chunk as it would come back at REFERENCE bits."""
        payload = self._codec.encode(slab, REFERENCE, span.key, sinks_at(span.start))
        return self._codec.decoded(payload, span.key)

    def _export(self, action: MeasureChunks, span: ChunkSpan) -> KvSlab:
        return self._ask(action, lambda seq: self._engine.engine.export(seq, span.start, span.stop))

    def _look(self, seq: int) -> Queries | None:
        self._codec.set_key_weights(self._engine.engine.key_weights())
        return self._engine.engine.take_queries(seq)

    def _ask(self, action: MeasureChunks, what: Callable[[int], T]) -> T:
        """Do something in the engine's order, unless the sequence's cells have gone by then."""

        def ask() -> T:
            if self._current.get(action.seq) != action.measure:
                raise Stale
            return what(action.seq)

        return self._engine.submit(ask).result()
