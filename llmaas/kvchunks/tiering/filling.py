"""Decodes the chunks of a load straight into cells that the engine has given them.

Law: it decides nothing, and nobody writes into cells any more once ``fill`` has returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import CodedChunk
from llmaas.kvchunks.tiering.payload_reader import Payload, Stopped
from llmaas.planner.actions import ChunkSource

Decode = Callable[[ChunkSource, CodedChunk | None, KvSlab], CodedChunk | None]


@dataclass(slots=True, eq=False)
class Filled:
    """What became of a load: its first ``n`` chunks are in cells."""

    n: int = 0
    copies: dict[int, CodedChunk] = field(default_factory=dict)
    """By the number of the chunk, the coded bytes that the POOL is to keep."""
    failed: Payload | None = None
    """The chunk behind those, if it could not be decoded."""
    error: Exception | None = None
    """Why there are no more."""


class Filling:
    """One load. ``rows``: those of its chunks in cells, as slabs of consecutive tokens, from position ``start`` on.

    Each thread takes the next chunk, decodes it, and takes another: no thread waits for what another is to give it,
    unless it comes from DISK.
    """

    def __init__(
        self, decode: Decode, rows: Sequence[KvSlab], start: int, payloads: Iterator[Payload], stop: Future[None]
    ) -> None:
        self._decode, self._start = decode, start
        self._parts = list(zip(accumulate((slab.n_tokens for slab in rows), initial=start), rows, strict=False))
        """Slabs with their first positions."""
        self._payloads, self._stop = payloads, stop
        self._lock = threading.Lock()
        self._taken = 0
        self._over = False
        self._end: int | None = None
        """Number of the first chunk that is not decoded, because it cannot be."""
        self._filled = Filled()

    def run(self, helpers: Executor, n_helpers: int) -> Filled:
        """Decode all chunks, on this thread and ``n_helpers`` others. When it returns, none of them writes any more."""
        others = [helpers.submit(self._work) for _ in range(n_helpers)]
        self._work()
        wait(others)
        self._filled.n = self._taken if self._end is None else self._end
        return self._filled

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            number, (source, payload) = taken
            try:
                copy = self._decode_into_cells(source, payload)
            except Exception as error:
                with self._lock:
                    self._end_at(number, error, (source, payload))
                return
            if copy is not None:
                self._filled.copies[number] = copy

    def _decode_into_cells(self, source: ChunkSource, payload: CodedChunk | None) -> CodedChunk | None:
        parts = [
            (max(first, source.start), _tokens(slab, max(first, source.start) - first, source.stop - first))
            for first, slab in self._parts
            if first < source.stop and source.start < first + slab.n_tokens
        ]
        if len(parts) == 1:
            return self._decode(source, payload, parts[0][1])
        _, some = parts[0]
        n, (n_layer, _, k_dim), v_dim = source.stop - source.start, some.k.shape, some.v.shape[2]
        whole = KvSlab(np.empty((n_layer, n, k_dim), np.float16), np.empty((n_layer, n, v_dim), np.float16))
        copy = self._decode(source, payload, whole)
        for first, part in parts:
            rows = _tokens(whole, first - source.start, first - source.start + part.n_tokens)
            part.k[:], part.v[:] = rows.k, rows.v
        return copy

    def _take(self) -> tuple[int, Payload] | None:
        """The next chunk and its number; None if there is nothing more to do."""
        with self._lock:
            if self._over or self._stop.done():
                return None
            try:
                payload = next(self._payloads, None)
            except Stopped:
                payload = None
            except Exception as error:
                self._end_at(self._taken, error, None)
                return None
            if payload is None:
                self._over = True
                return None
            self._taken += 1
            return self._taken - 1, payload

    def _end_at(self, number: int, error: Exception, failed: Payload | None) -> None:
        self._over = True
        if self._end is None or number < self._end:
            self._end, self._filled.error, self._filled.failed = number, error, failed


def _tokens(slab: KvSlab, start: int, stop: int) -> KvSlab:
    return KvSlab(slab.k[:, start:stop], slab.v[:, start:stop], owner=slab.owner)
