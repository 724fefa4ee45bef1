"""The pool: holds the coded chunks of the POOL tier in RAM, and carries out the planner's chunk actions.

Law: it decides nothing. It moves chunks CELLS <-> POOL <-> DISK as the planner says, and its bytes (``nbytes``) must
equal the ledger's. A chunk that cannot be read or decoded is reported, never raised.

Its parts: ``loader`` (to CELLS), ``disk_reader`` (DISK to POOL), ``disk_writer`` (POOL to DISK), ``memory_trimmer``
(freeing). Saves run on threads of low CPU priority, which ``rest`` while a call waits for its first token.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from llmaas.clock import Clock
from llmaas.engine.thread import EngineThread
from llmaas.host.thread_priority import lower_cpu_priority
from llmaas.kv_arrays import Bytes, KvSlab
from llmaas.kvchunks.codec.codec import Codec, CodedChunk, sinks_at
from llmaas.kvchunks.codec.states import encode_state
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.disk_reader import DiskReader
from llmaas.kvchunks.tiering.disk_writer import DiskWriter
from llmaas.kvchunks.tiering.loader import Loader
from llmaas.kvchunks.tiering.memory_trimmer import MemoryTrimmer
from llmaas.kvchunks.tiering.rest import Rest
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import (
    ChunkTarget,
    FetchChunks,
    LoadChunks,
    LowerChunks,
    PersistSensitivity,
    SaveChunks,
    StopLoad,
    StopWrite,
    WriteChunks,
)
from llmaas.planner.events import FAILED, ChunkOutcome, Fetched, Loaded, Lowered, Saved, Stored, Written
from llmaas.records import ChunkKey, Tier

log = logging.getLogger(__name__)

_MOST_RESTS = 5
"""Of a save: a quarter of a second. Its chunks are held in f16 meanwhile."""


class Pool:
    """Coded chunks in RAM, and the threads that move them.

    Every method returns at once. Each ``done`` is called once, on a worker thread, with the answer to its action.
    ``workers`` is the number of threads that decode, and of those that save; ``write_rate`` is in bytes a second, 0
    for no limit.
    """

    def __init__(
        self,
        engine: EngineThread,
        codec: Codec,
        store: Store,
        *,
        workers: int = 2,
        write_rate: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._chunks: dict[ChunkKey, CodedChunk] = {}
        self._reader = DiskReader(store, self._keep)
        self._loader = Loader(engine, codec, self._reader, self._keep, workers=workers)
        self._savers = Workers(workers, "save", lower_cpu_priority)
        self.rest = Rest()
        """Chunks that have been copied out of CELLS are not coded while there is rest."""
        self._writer = DiskWriter(store, write_rate, clock)
        self._trimmer = MemoryTrimmer()

    @property
    def nbytes(self) -> int:
        """Bytes of coded chunks held in RAM."""
        return sum(len(p) for p in list(self._chunks.values()))

    def close(self) -> None:
        """End the threads. What they are doing now, and every write and discard that was asked for, is finished."""
        self.rest.told(False)
        self._loader.close()
        self._reader.close()
        self._savers.shutdown(wait=True, cancel_futures=True)
        self._writer.close()
        self._trimmer.close()

    def _keep(self, key: ChunkKey, payload: CodedChunk) -> None:
        self._chunks[key] = payload

    def held(self, key: ChunkKey) -> CodedChunk | None:
        """The coded bytes of a chunk, if it is in RAM. From any thread."""
        return self._chunks.get(key)

    def drop(self, keys: Sequence[ChunkKey]) -> None:
        """Forget chunks."""
        self._trimmer.free([self._chunks.pop(key, None) for key in keys])

    def trim_memory(self) -> None:
        """Return the memory of dropped chunks to the system, soon."""
        self._trimmer.trim()

    # -- to CELLS

    def load(self, action: LoadChunks, done: Callable[[Loaded], None]) -> None:
        held = {s.key: self._chunks.get(s.key) for s in action.chunks if s.tier is Tier.POOL}
        self._loader.load(action, held, done)

    def stop_load(self, action: StopLoad) -> None:
        """Have a load answered soon, without waiting for the disk."""
        self._loader.stop(action)

    # -- from DISK

    def fetch(self, action: FetchChunks, done: Callable[[Fetched], None]) -> None:
        self._reader.fetch(action, done)

    # -- from CELLS

    def save(self, action: SaveChunks, done: Callable[[Saved], None]) -> None:
        """Export at once in the engine's order; then code in the background."""
        if self._engine.engine.info.state is not None:
            state = self._engine.submit(self._engine.engine.export_state, action.seq)
            self._savers.submit(self._save_state, action, state, done)
            return
        exported = self._engine.submit(self._export, action.seq, action.chunks)
        self._savers.submit(self._save, action, exported, done)

    def _save_state(self, action: SaveChunks, exported: Future[Bytes], done: Callable[[Saved], None]) -> None:
        (target,) = action.chunks
        outcome: ChunkOutcome = FAILED
        try:
            state = exported.result()
            del exported  # it holds the state, too
            size = self._engine.engine.info.state
            if size is None or state.size > size.of(target.stop):
                log.warning("a state of %d tokens has %d bytes, more than expected", target.stop, state.size)
            else:
                payload = encode_state(state, target.key, target.stop, self._codec.geometry)
                self._chunks[target.key] = payload
                outcome = Stored(len(payload))
        except Exception:
            log.exception("save %d failed; what it would have kept is computed again", action.save)
        done(Saved(action.save, (outcome,)))

    def _export(self, seq: int, targets: Sequence[ChunkTarget]) -> list[KvSlab]:
        self._codec.set_key_weights(self._engine.engine.key_weights())
        return [self._engine.engine.export(seq, t.start, t.stop) for t in targets]

    def _save(self, action: SaveChunks, exported: Future[list[KvSlab]], done: Callable[[Saved], None]) -> None:
        outcomes: list[ChunkOutcome] = [FAILED] * len(action.chunks)
        try:
            slabs = deque(exported.result())
            del exported  # it holds all of them
            rests_left = _MOST_RESTS
            for i, target in enumerate(action.chunks):
                rests_left = self.rest.take(rests_left)
                slab, sinks = slabs.popleft(), sinks_at(target.start)  # its buffer is used again as soon as it is coded
                if not self._codec.is_finite(slab):  # not even as it is, which a lossless chunk would be
                    log.warning("chunk %s holds NaN or infinity; it is not kept", target.key.hex())
                    continue
                payload = self._codec.encode(slab, target.precision, target.key, sinks)
                if len(payload) > self._codec.encoded_size(target.stop - target.start, target.precision, sinks):
                    log.warning("chunk %s has values that no group can hold; it is not kept", target.key.hex())
                    continue
                self._chunks[target.key] = payload
                outcomes[i] = Stored(len(payload))
        except Exception:
            log.exception("save %d failed; its chunks will be recomputed when needed", action.save)
        done(Saved(action.save, tuple(outcomes)))

    # -- with fewer bits

    def lower(self, action: LowerChunks, done: Callable[[Lowered], None]) -> None:
        """Code chunks again, with fewer bits. One that cannot be, or would not be smaller, stays as it is."""
        held = [self._chunks[key] for key, _ in action.chunks]
        self._savers.submit(self._lower, action, held, done)

    def _lower(self, action: LowerChunks, held: list[CodedChunk], done: Callable[[Lowered], None]) -> None:
        outcomes: list[ChunkOutcome] = [FAILED] * len(held)
        for i, ((key, precision), payload) in enumerate(zip(action.chunks, held, strict=True)):
            try:
                smaller = self._codec.lower(payload, precision, key)
            except Exception as e:
                log.warning("chunk %s cannot be coded again: %r", key.hex(), e)
                continue
            if len(smaller) < len(payload):
                self._chunks[key] = smaller
                outcomes[i] = Stored(len(smaller))
        done(Lowered(action.lower, tuple(outcomes)))

    # -- to DISK

    def write(self, action: WriteChunks, done: Callable[[Written], None]) -> None:
        self._writer.write(action, [self._chunks[key] for key in action.keys], done)

    def stop_write(self, action: StopWrite) -> None:
        """Have a write answered soon; what it has not written yet counts as not written."""
        self._writer.stop(action.write)

    def persist_sensitivity(self, action: PersistSensitivity) -> None:
        """Store what was measured of chunks on DISK, after the writes that were asked for before."""
        self._writer.persist_sensitivity(action)

    def drop_disk(self, keys: Sequence[ChunkKey]) -> None:
        """Discard chunks from the store, after the writes that were asked for before."""
        self._writer.discard(keys)
