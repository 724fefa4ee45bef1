"""Measures, in the background, what chunks in CELLS would lose by being coded.

Law: it decides nothing and delays nobody. Chunks are exported one by one between the engine's steps and measured by
one thread of low CPU priority, which rests while a call waits for its first token (``rest``), for a second at most; a
context's f16 KV is never in memory all at once. Whatever goes wrong, the answer comes, with fewer chunks in it or none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from llmaas.engine.thread import EngineThread
from llmaas.host.thread_priority import lower_cpu_priority
from llmaas.kv_arrays import KvSlab, Queries
from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.kvchunks.codec.sensitivity import FEWEST, REFERENCE, Scorer
from llmaas.kvchunks.tiering.rest import Rest
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import ChunkSpan, MeasureChunks
from llmaas.planner.events import Measured
from llmaas.records import CHUNK_TOKENS, ChunkKey, ChunkSensitivity

T = TypeVar("T")
Score = tuple[ChunkKey, ChunkSensitivity]

log = logging.getLogger(__name__)

_MOST_RESTS = 20
"""Of a measurement: a second."""


class Stale(Exception):
    """The cells that were being measured have been dropped."""


class SensitivityWorker:
    """Carries out ``MeasureChunks``. ``measure`` and ``stop`` return at once."""

    def __init__(self, engine: EngineThread, codec: Codec) -> None:
        self._engine = engine
        self._codec = codec
        self._worker = Workers(1, "measure", lower_cpu_priority)
        self._current: dict[int, int] = {}
        """The measurement that may still read the cells of each sequence."""
        self.rest = Rest()
        self._rests_left = 0
        """How often the present measurement may still rest."""

    def close(self) -> None:
        """End the thread. The measurement that runs is given up."""
        self._current.clear()
        self.rest.told(False)
        self._worker.shutdown(wait=True, cancel_futures=True)

    def stop(self, seq: int) -> None:
        """Stop reading the cells of the sequence: they are about to be dropped."""
        self._current.pop(seq, None)

    def measure(self, action: MeasureChunks, done: Callable[[Measured], None]) -> None:
        """Begin a measurement; ``done`` is called on the worker thread."""
        self._current[action.seq] = action.measure
        self._worker.submit(self._measure, action, done)

    def _measure(self, action: MeasureChunks, done: Callable[[Measured], None]) -> None:
        scores: list[Score] = []
        self._rests_left = _MOST_RESTS
        try:
            self._score(action, scores)
        except Stale:
            log.debug("measurement %d ended early: its cells were dropped", action.measure)
        except Exception:
            log.exception("measurement %d failed; its chunks are coded as others are", action.measure)
        done(Measured(action.measure, tuple(scores)))

    def _score(self, action: MeasureChunks, scores: list[Score]) -> None:
        queries = self._on_engine(action, self._queries)
        if queries is None:
            return
        n = int(np.searchsorted(queries.positions, action.chunks[-1].stop))
        if n < FEWEST:  # most, or all, are of what came after these chunks
            return
        queries = Queries(queries.positions[:n], queries.values[:n])
        scorer = Scorer(self._codec.geometry, queries, windows=self._engine.engine.windows)
        for span in action.chunks:
            scorer.add(span.start, self._export(action, span))
        for span in action.chunks:
            if span.stop - span.start < CHUNK_TOKENS:
                continue  # a chunk is kept lossless until it is full
            slab = self._export(action, span)
            found = scorer.measure(span.start, slab, self._coded(span, slab))
            if found is not None and np.isfinite(found).all():
                scores.append((span.key, found))

    def _coded(self, span: ChunkSpan, slab: KvSlab) -> KvSlab:
        """The chunk as decoded after coding at REFERENCE bits."""
        payload = self._codec.encode(slab, REFERENCE, span.key, sinks_at(span.start))
        return self._codec.decoded(payload, span.key)

    def _export(self, action: MeasureChunks, span: ChunkSpan) -> KvSlab:
        self._rests_left = self.rest.take(self._rests_left)
        return self._on_engine(action, lambda seq: self._engine.engine.export(seq, span.start, span.stop))

    def _queries(self, seq: int) -> Queries | None:
        self._codec.set_key_weights(self._engine.engine.key_weights())
        return self._engine.engine.take_queries(seq)

    def _on_engine(self, action: MeasureChunks, what: Callable[[int], T]) -> T:
        """Call ``what`` on the engine's thread; its result. Raises Stale if the cells have been dropped by then."""

        def call() -> T:
            if self._current.get(action.seq) != action.measure:
                raise Stale
            return what(action.seq)

        return self._engine.submit(call).result()
