"""Decodes the chunks of a load straight into cells that the engine has given them.

Law: it decides nothing, and nobody writes into cells any more once ``fill`` has returned.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from itertools import accumulate, count

import numpy as np

from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, CodedChunk, SoundChunk
from llmaas.kvchunks.tiering.disk_reader import UnopenedChunk, sound_chunk, to_be_kept
from llmaas.kvchunks.tiering.own_core import own_core
from llmaas.kvchunks.tiering.payload_reader import Arrived, Payload, Stopped
from llmaas.planner.actions import ChunkSource
from llmaas.records import CHUNK_TOKENS

_Checked = tuple[Payload, SoundChunk]
_AT_ONCE_BYTES = 6 << 20
"""Of f16 that a thread decodes by one call: a millisecond or two. Whoever stops the load waits for that long."""


@dataclass(slots=True, eq=False)
class Filled:
    """What became of a load: its first ``n`` chunks are in cells."""

    n: int = 0
    copies: dict[int, CodedChunk] = field(default_factory=dict)
    """By the number of the chunk, the coded bytes that the POOL is to keep."""
    failed: Arrived | None = None
    """The chunk behind those, if it cannot be decoded."""
    error: Exception | None = None
    """Why there are no more."""


class Filling:
    """One load. ``rows``: those of its ``chunks`` in cells, as slabs of consecutive tokens.

    Each thread takes the next payloads that are there, decodes them by one call, and takes others: no thread waits for
    what another is to give it, unless it comes from DISK. Of those ``here`` it takes fewer towards the end, so that all
    threads end at about the same time. ``reads``: what is read meanwhile; what comes together is taken together.
    """

    def __init__(
        self,
        codec: Codec,
        chunks: Sequence[ChunkSource],
        rows: Sequence[KvSlab],
        here: deque[Payload],
        reads: Iterator[list[Arrived]],
        stop: Future[None],
    ) -> None:
        self._codec, self._here, self._reads, self._stop = codec, here, reads, stop
        self._numbers = {chunk.start: number for number, chunk in enumerate(chunks)}
        firsts = accumulate((slab.n_tokens for slab in rows), initial=chunks[0].start)
        self._parts = list(zip(firsts, rows, strict=False))
        """Slabs with their first positions."""
        self._most = max(1, _AT_ONCE_BYTES // (CHUNK_TOKENS * codec.geometry.token_bytes))
        """Chunks that a thread takes at once."""
        self._n_threads = 1
        self._lock = threading.Lock()
        self._decoded: set[int] = set()
        self._end = len(chunks)
        """Number of the first chunk that cannot be decoded, and the number of chunks if all can."""
        self._over = False
        self._filled = Filled()

    def run(self, helpers: Executor, n_helpers: int) -> Filled:
        """Decode all chunks, on this thread and ``n_helpers`` others. When it returns, none of them writes any more.

        Behind a chunk that cannot be decoded nothing is decoded but what was taken with it.
        """
        self._n_threads = 1 + n_helpers
        others = [helpers.submit(self._work, number) for number in range(1, 1 + n_helpers)]
        self._work(0)
        wait(others)
        filled = self._filled
        filled.n = next(number for number in count() if number not in self._decoded)
        if filled.n < self._end:  # it was stopped, or nothing more could be read
            filled.failed = None
        return filled

    def _work(self, number: int) -> None:
        with own_core(number, self._n_threads):
            while taken := self._take():
                self._decode_all(self._opened(taken))

    def _opened(self, taken: list[Arrived]) -> list[_Checked]:
        """Those that are sound, as coded bytes. ``taken`` is empty then: what is encrypted is let go of."""
        sound = list[_Checked]()
        while taken:
            source, data = arrived = taken.pop()
            try:
                payload = data.open() if isinstance(data, UnopenedChunk) else data
                sound.append(((source, payload), sound_chunk(self._codec, source, payload)))
            except Exception as error:
                self._fail(arrived, error)
            del data, arrived
        return sound

    def _decode_all(self, chunks: Sequence[_Checked]) -> None:
        try:
            self._decode(chunks)
        except Exception:  # one by one, so that it shows whose it is
            for one in chunks:
                try:
                    self._decode([one])
                except Exception as error:
                    self._fail(one[0], error)

    def _decode(self, chunks: Sequence[_Checked]) -> None:
        in_part: dict[int | None, list[_Checked]] = {}
        for one in chunks:
            in_part.setdefault(self._part_of(one[0][0]), []).append(one)
        for part, some in in_part.items():
            if part is None:
                for one in some:
                    self._settle([one], self._decode_aside(one[0][0], one[1]))
            else:
                first, slab = self._parts[part]
                placed = [(chunk, source.start - first) for (source, _), chunk in some]
                self._settle(some, self._codec.decode_sound(placed, slab))

    def _part_of(self, source: ChunkSource) -> int | None:
        """The slab with all of its tokens, if one has all."""
        for number, (first, slab) in enumerate(self._parts):
            if first <= source.start and source.stop <= first + slab.n_tokens:
                return number
        return None

    def _settle(self, chunks: Sequence[_Checked], damaged: Mapping[int, ChunkDamaged]) -> None:
        """The codec has decoded these, but for the ``damaged``."""
        for at, ((source, payload), _) in enumerate(chunks):
            if at in damaged:
                self._fail((source, payload), damaged[at])
                continue
            number = self._numbers[source.start]
            if source.keep and payload is not None:
                self._filled.copies[number] = to_be_kept(payload)
            self._decoded.add(number)

    def _decode_aside(self, source: ChunkSource, chunk: SoundChunk) -> Mapping[int, ChunkDamaged]:
        """Decode a chunk whose cells are in two places, and copy it there."""
        _, some = self._parts[0]
        (n_layer, _, k_dim), v_dim = some.k.shape, some.v.shape[2]
        shape = n_layer, chunk.n_tokens
        whole = KvSlab(np.empty((*shape, k_dim), np.float16), np.empty((*shape, v_dim), np.float16))
        damaged = self._codec.decode_sound([(chunk, 0)], whole)
        for first, slab in self._parts if not damaged else ():
            start, stop = max(first, source.start), min(first + slab.n_tokens, source.stop)
            if start < stop:
                into, rows = slice(start - first, stop - first), slice(start - source.start, stop - source.start)
                slab.k[:, into], slab.v[:, into] = whole.k[:, rows], whole.v[:, rows]
        return damaged

    def _fail(self, payload: Arrived, error: Exception) -> None:
        number = self._numbers[payload[0].start]
        with self._lock:
            if number < self._end:
                self._end, self._filled.error, self._filled.failed = number, error, payload

    def _take(self) -> list[Arrived]:
        """The next payloads; none if there is nothing more to do."""
        with self._lock:
            while not self._over and not self._stop.done():
                taken: list[Arrived] = self._some_of_here() if self._here else self._read_on()
                if wanted := [payload for payload in taken if self._numbers[payload[0].start] < self._end]:
                    return wanted
        return []

    def _some_of_here(self) -> list[Arrived]:
        n = min(self._most, -(-len(self._here) // (2 * self._n_threads)))
        return [self._here.popleft() for _ in range(n)]

    def _read_on(self) -> list[Arrived]:
        """Wait for the next read. With the lock."""
        try:
            if (read := next(self._reads, None)) is not None:
                return read
        except Stopped:
            pass
        except Exception as error:
            self._filled.error = self._filled.error or error
        self._over = True
        return []
