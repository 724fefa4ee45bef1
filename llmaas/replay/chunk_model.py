"""POOL and DISK of a replay: the bytes of each chunk there, and how long moving them takes.

Law: sizes are the codec's own; only the prices are invented. Nothing fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmaas.errors import assert_never
from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.kvchunks.codec.states import coded_state_size
from llmaas.planner.actions import (
    ChunkAction,
    ChunkSource,
    ChunkTarget,
    DropCells,
    DropDisk,
    DropPool,
    FetchChunks,
    LoadChunks,
    LowerChunks,
    MeasureChunks,
    PersistSensitivity,
    SaveChunks,
    StopLoad,
    StopWrite,
    WriteChunks,
)
from llmaas.planner.events import Event, Fetched, Loaded, Lowered, Measured, Saved, Stored, Written
from llmaas.records import CHUNK_TOKENS, ChunkKey, Geometry, StateSize, Tier
from llmaas.replay.prices import Costs
from llmaas.replay.timeline import Resource, Timeline

Answer = tuple[float, Event]
"""When an action has been carried out, and what the planner is told then."""


class ChunkModel:
    """Carries out what the planner does with chunks, in virtual time."""

    def __init__(self, geometry: Geometry, costs: Costs, time: Timeline, state: StateSize | None = None) -> None:
        """``state``: the size of whole states, if these are kept in place of chunks."""
        self._size = Codec(geometry).encoded_size
        self._token_bytes = geometry.token_bytes
        self._state = state
        self._costs, self._time = costs, time
        self._pool: dict[ChunkKey, int] = {}
        self._disk: dict[ChunkKey, int] = {}

    def perform(self, action: ChunkAction) -> Answer | None:
        """Begin an action; its answer, if it has one."""
        match action:
            case LoadChunks():
                return self._load(action)
            case FetchChunks():
                return self._fetch(action)
            case SaveChunks():
                return self._save(action)
            case WriteChunks():
                return self._write(action)
            case LowerChunks():
                return self._lower(action)
            case MeasureChunks():
                return self._time.now, Measured(action.measure, ())
            case DropPool():
                _remove(self._pool, action.keys)
            case DropDisk():
                _remove(self._disk, action.keys)
            case StopLoad() | StopWrite():
                pass  # loads and writes take their whole time here
            case DropCells() | PersistSensitivity():
                pass
            case _:
                assert_never(action)
        return None

    def _load(self, action: LoadChunks) -> Answer:
        c, time = self._costs, self._time
        on_disk = sum(self._disk[s.key] for s in action.chunks if s.tier is Tier.DISK)
        coded = on_disk + sum(self._pool[s.key] for s in action.chunks if s.tier is Tier.POOL)
        cells = self._f16_bytes(action.chunks)
        read = time.work(Resource.DISK, c.disk_latency + on_disk * c.disk_read_byte) if on_disk else time.now
        decoded = time.work(Resource.LOADER, c.load + coded * c.code_byte, after=read)
        done = time.work(Resource.ENGINE, cells * c.cell_byte, after=decoded)
        self._pool.update((s.key, self._disk[s.key]) for s in action.chunks if s.keep)
        return done, Loaded(action.load, len(action.chunks))

    def _fetch(self, action: FetchChunks) -> Answer:
        sizes = tuple(self._disk[key] for key in action.keys)
        done = self._time.work(Resource.DISK, self._costs.disk_latency + sum(sizes) * self._costs.disk_read_byte)
        self._pool.update(zip(action.keys, sizes, strict=True))
        return done, Fetched(action.fetch, tuple(map(Stored, sizes)))

    def _save(self, action: SaveChunks) -> Answer:
        c = self._costs
        sizes = tuple(map(self._coded_size, action.chunks))
        cells = self._f16_bytes(action.chunks)
        exported = self._time.work(Resource.ENGINE, cells * c.cell_byte)
        done = self._time.work(Resource.CODER, sum(sizes) * c.code_byte, after=exported)
        self._pool.update(zip((t.key for t in action.chunks), sizes, strict=True))
        return done, Saved(action.save, tuple(map(Stored, sizes)))

    def _coded_size(self, target: ChunkTarget) -> int:
        if self._state is not None:
            return coded_state_size(self._state.of(target.stop))
        return self._size(target.stop - target.start, target.precision, sinks_at(target.start))

    def _f16_bytes(self, chunks: Sequence[ChunkSource | ChunkTarget]) -> int:
        """What the engine moves."""
        if self._state is not None:
            return sum(self._state.of(chunk.stop) for chunk in chunks)
        return sum(chunk.stop - chunk.start for chunk in chunks) * self._token_bytes

    def _lower(self, action: LowerChunks) -> Answer:
        before = [self._pool[key] for key, _ in action.chunks]
        sizes = [min(old, self._size(CHUNK_TOKENS, p, 0)) for old, (_, p) in zip(before, action.chunks, strict=True)]
        done = self._time.work(Resource.CODER, (sum(before) + sum(sizes)) * self._costs.code_byte)
        self._pool.update((key, n) for (key, _), n in zip(action.chunks, sizes, strict=True))
        return done, Lowered(action.lower, tuple(map(Stored, sizes)))

    def _write(self, action: WriteChunks) -> Answer:
        sizes = tuple(self._pool[key] for key in action.keys)
        done = self._time.work(Resource.DISK, self._costs.disk_latency + sum(sizes) * self._costs.disk_write_byte)
        self._disk.update(zip(action.keys, sizes, strict=True))
        return done, Written(action.write, tuple(map(Stored, sizes)))


def _remove(held: dict[ChunkKey, int], keys: Iterable[ChunkKey]) -> None:
    for key in keys:
        held.pop(key, None)
