"""Decodes the chunks of a load straight into cells that the engine has given them.

Law: it decides nothing, and nobody writes into cells any more once ``fill`` has returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from itertools import accumulate, count

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
    """The chunk behind those, if it cannot be decoded."""
    error: Exception | None = None
    """Why there are no more."""


class Filling:
    """One load. ``rows``: those of its ``chunks`` in cells, as slabs of consecutive tokens.

    Each thread takes the next payload, decodes it, and takes another: no thread waits for what another is to give it,
    unless it comes from DISK. Payloads come in any order.
    """

    def __init__(
        self,
        decode: Decode,
        chunks: Sequence[ChunkSource],
        rows: Sequence[KvSlab],
        payloads: Iterator[Payload],
        stop: Future[None],
    ) -> None:
        self._decode, self._payloads, self._stop = decode, payloads, stop
        self._numbers = {chunk.start: number for number, chunk in enumerate(chunks)}
        firsts = accumulate((slab.n_tokens for slab in rows), initial=chunks[0].start)
        self._parts = list(zip(firsts, rows, strict=False))
        """Slabs with their first positions."""
        self._lock = threading.Lock()
        self._decoded: set[int] = set()
        self._end = len(chunks)
        """Number of the first chunk that cannot be decoded, and the number of chunks if all can."""
        self._over = False
        self._filled = Filled()

    def run(self, helpers: Executor, n_helpers: int) -> Filled:
        """Decode all chunks, on this thread and ``n_helpers`` others. When it returns, none of them writes any more.

        Behind a chunk that cannot be decoded nothing is decoded.
        """
        others = [helpers.submit(self._work) for _ in range(n_helpers)]
        self._work()
        wait(others)
        filled = self._filled
        filled.n = next(number for number in count() if number not in self._decoded)
        if filled.n < self._end:  # it was stopped, or nothing more could be read
            filled.failed = None
        return filled

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            number, (source, payload) = taken
            try:
                copy = self._decode_into_cells(source, payload)
            except Exception as error:
                with self._lock:
                    if number < self._end:
                        self._end, self._filled.error, self._filled.failed = number, error, (source, payload)
                continue
            if copy is not None:
                self._filled.copies[number] = copy
            self._decoded.add(number)

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
        """The next payload and the number of its chunk; None if there is nothing more to do."""
        with self._lock:
            while not self._over and not self._stop.done():
                try:
                    payload = next(self._payloads, None)
                except Stopped:
                    payload = None
                except Exception as error:
                    payload, self._filled.error = None, self._filled.error or error
                if payload is None:
                    self._over = True
                elif (number := self._numbers[payload[0].start]) < self._end:
                    return number, payload
        return None


def _tokens(slab: KvSlab, start: int, stop: int) -> KvSlab:
    return KvSlab(slab.k[:, start:stop], slab.v[:, start:stop], owner=slab.owner)
