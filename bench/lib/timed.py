"""A store, its files, a codec and an engine that record when they bring chunks back: what a switch is made of.

Law: they do what the product's do, and a microsecond per call more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import Any

from llmaas.engine.llama.engine import LlamaEngine
from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, CodedChunk, SoundChunk
from llmaas.kvchunks.codec.whole_chunks import Placed
from llmaas.kvchunks.store.rows import Place, SealedChunk
from llmaas.kvchunks.store.store import Files, Store
from llmaas.records import ChunkKey

READ, FILE, OPEN, DECODE, LOAD = PARTS = ("read", "file", "open", "decode", "load")


class Stopwatch:
    """When named parts ran, on any thread, since ``clear``. Times are in seconds of ``perf_counter``."""

    def __init__(self) -> None:
        self.spans: dict[str, list[tuple[float, float]]] = {}
        self.cpu: dict[str, list[float]] = {}
        """Seconds of CPU that each span took on its thread."""
        self.clear()

    def clear(self) -> None:
        self.spans, self.cpu = {name: [] for name in PARTS}, {name: [] for name in PARTS}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Record the time of the block for the part ``name``."""
        begin, cpu = perf_counter(), thread_time()
        try:
            yield
        finally:
            self.cpu[name].append(thread_time() - cpu)
            self.spans[name].append((begin, perf_counter()))

    def total_ms(self, name: str) -> float:
        """Milliseconds in the part, summed over calls and threads."""
        return sum(end - begin for begin, end in self.spans[name]) * 1e3

    def cpu_ms(self, name: str) -> float:
        """Milliseconds of CPU in the part: neither waiting for another thread or the disk, nor for a core."""
        return sum(self.cpu[name]) * 1e3

    def wall_ms(self, *names: str) -> float:
        """Milliseconds from the first begin to the last end of the parts; 0 if none ran."""
        spans = [span for name in names for span in self.spans[name]]
        return (max(end for _, end in spans) - min(begin for begin, _ in spans)) * 1e3 if spans else 0.0


class TimedStore(Store):
    """Records ``read``: finding and reading bytes, and ``open``: decrypting them."""

    def __init__(self, watch: Stopwatch, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.watch = watch

    def get(self, keys: Sequence[ChunkKey], *, in_place: bool = False) -> list[memoryview | bytes | None]:
        with self.watch.running(READ):
            return super().get(keys, in_place=in_place)

    def places(self, keys: Sequence[ChunkKey]) -> list[Place]:
        with self.watch.running(READ):
            return super().places(keys)

    def read(self, places: Sequence[Place], *, once: bool = False) -> list[SealedChunk]:
        with self.watch.running(READ):
            return super().read(places, once=once)

    def open(self, sealed: SealedChunk) -> memoryview | bytes | None:
        with self.watch.running(OPEN):
            return super().open(sealed)


class TimedFiles(Files):
    """Records ``file``: reading payload files, which is part of ``read``."""

    def __init__(self, watch: Stopwatch, files: Files) -> None:
        self.watch, self._files = watch, files

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        with self.watch.running(FILE):
            return self._files.pread_into(fd, buffer, offset)


class TimedCodec(Codec):
    """Records ``decode``."""

    def __init__(self, watch: Stopwatch, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.watch = watch

    def sound(self, payload: CodedChunk, key: ChunkKey, n_tokens: int) -> SoundChunk:
        with self.watch.running(DECODE):
            return super().sound(payload, key, n_tokens)

    def decode_sound(self, chunks: Sequence[Placed], slab: KvSlab) -> dict[int, ChunkDamaged]:
        with self.watch.running(DECODE):
            return super().decode_sound(chunks, slab)


class TimedEngine(LlamaEngine):
    """Records ``load``."""

    def __init__(self, watch: Stopwatch, *args: Any, **options: Any) -> None:
        self.watch = watch
        super().__init__(*args, **options)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        with self.watch.running(LOAD):
            super().load(seq, start, slab)

    def begin_load(self, seq: int, start: int, n_tokens: int) -> list[KvSlab] | None:
        with self.watch.running(LOAD):
            return super().begin_load(seq, start, n_tokens)
