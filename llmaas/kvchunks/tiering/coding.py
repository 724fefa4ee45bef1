"""Coding: the chunks of one save, which every free thread takes one after the other.

Law: a chunk that cannot be coded is reported as failed and leaves the others alone. The answer is given once, by the
thread that has ended the last chunk; no thread waits for another.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, CodedChunk, sinks_at
from llmaas.planner.actions import ChunkTarget
from llmaas.planner.events import FAILED, ChunkOutcome, Stored
from llmaas.records import ChunkKey

log = logging.getLogger(__name__)


class Coding:
    """``keep`` gets each coded chunk; ``done`` what came of all of them, in the order of ``targets``."""

    def __init__(
        self,
        codec: Codec,
        targets: Sequence[ChunkTarget],
        slabs: Sequence[KvSlab],
        keep: Callable[[ChunkKey, CodedChunk], None],
        done: Callable[[tuple[ChunkOutcome, ...]], None],
    ) -> None:
        self._codec, self._keep, self._done = codec, keep, done
        self._outcomes: list[ChunkOutcome] = [FAILED] * len(targets)
        self._waiting = deque(enumerate(zip(targets, slabs, strict=True)))
        self._lock, self._left = threading.Lock(), len(targets)

    def work(self) -> None:
        """Code chunks until none waits."""
        while True:
            try:
                i, (target, slab) = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._outcomes[i] = self._code(target, slab)
            except Exception:
                log.exception("chunk %s could not be coded; it will be computed again when needed", target.key.hex())
            del slab  # its buffer is used again as soon as it is coded
            with self._lock:
                self._left -= 1
                last = not self._left
            if last:
                self._done(tuple(self._outcomes))

    def _code(self, target: ChunkTarget, slab: KvSlab) -> ChunkOutcome:
        sinks = sinks_at(target.start)
        if not self._codec.is_finite(slab):  # not even as it is, which a lossless chunk would be
            log.warning("chunk %s holds NaN or infinity; it is not kept", target.key.hex())
            return FAILED
        payload = self._codec.encode(slab, target.precision, target.key, sinks)
        if len(payload) > self._codec.encoded_size(target.stop - target.start, target.precision, sinks):
            log.warning("chunk %s has values that no group can hold; it is not kept", target.key.hex())
            return FAILED
        self._keep(target.key, payload)
        return Stored(len(payload))
