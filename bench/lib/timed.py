"""A store, a codec and an engine that record when they bring chunks back: what a switch is made of.

Law: they do what the product's do, and a microsecond per call more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from llmaas.engine.llama.engine import LlamaEngine
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, CodedChunk
from llmaas.kvchunks.store.store import Store
from llmaas.records import ChunkKey

READ, DECODE, LOAD = "read", "decode", "load"


class Stopwatch:
    """When named parts ran, on any thread, since ``clear``. Times are in seconds of ``perf_counter``."""

    def __init__(self) -> None:
        self.spans: dict[str, list[tuple[float, float]]] = {}
        self.clear()

    def clear(self) -> None:
        self.spans = {name: [] for name in (READ, DECODE, LOAD)}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Record the time of the block for the part ``name``."""
        begin = perf_counter()
        try:
            yield
        finally:
            self.spans[name].append((begin, perf_counter()))

    def total_ms(self, name: str) -> float:
        """Milliseconds in the part, summed over calls and threads."""
        return sum(end - begin for begin, end in self.spans[name]) * 1e3

    def wall_ms(self, *names: str) -> float:
        """Milliseconds from the first begin to the last end of the parts; 0 if none ran."""
        spans = [span for name in names for span in self.spans[name]]
        return (max(end for _, end in spans) - min(begin for begin, _ in spans)) * 1e3 if spans else 0.0


class TimedStore(Store):
    """Records ``read``."""

    def __init__(self, watch: Stopwatch, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.watch = watch

    def get(self, keys: Sequence[ChunkKey]) -> list[memoryview | bytes | None]:
        with self.watch.running(READ):
            return super().get(keys)


class TimedCodec(Codec):
    """Records ``decode``."""

    def __init__(self, watch: Stopwatch, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.watch = watch

    def decode(self, payload: CodedChunk, key: ChunkKey, into: KvSlab) -> None:
        with self.watch.running(DECODE):
            super().decode(payload, key, into)


class TimedEngine(LlamaEngine):
    """Records ``load``."""

    def __init__(self, watch: Stopwatch, *args: Any, **options: Any) -> None:
        self.watch = watch
        super().__init__(*args, **options)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        with self.watch.running(LOAD):
            super().load(seq, start, slab)
