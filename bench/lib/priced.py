"""An engine and a store whose work takes virtual time: a day of calls, at the prices of some machine.

Law: the codec, the store, the planner and the service are the product's own, and so is every byte that they write. Only
the clock is not: it stands still but for what computing, coding and reading would take at given prices, and for the
pauses of who uses the service. So a day takes a minute, and its times are the same in every run.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmaas.clock import ManualClock
from llmaas.engine.base import BatchItem, Row
from llmaas.engine.fake import FakeEngine
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.store.store import Files, MasterKey, Store
from llmaas.records import ChunkKey
from llmaas.replay.prices import Costs


class SharedClock(ManualClock):
    """A clock that several threads move on."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def advance(self, seconds: float) -> None:
        with self._lock:
            super().advance(seconds)


class PricedEngine(FakeEngine):
    """Steps and loads take what ``costs`` says."""

    def __init__(self, clock: SharedClock, costs: Costs, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._clock, self._costs = clock, costs

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        drawn = super().step(items, adapter, draw_s=draw_s)
        costs, seconds = self._costs, self._costs.step
        for item in items:
            n = len(item.tokens)
            seconds += costs.decode_token if n == 1 else n * costs.prefill_token
        self._clock.advance(seconds)
        return drawn

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        super().load(seq, start, slab)
        self._clock.advance(self._costs.cell_byte * (slab.k.nbytes + slab.v.nbytes))


class CountingFiles(Files):
    """Counts the bytes that are written to payload files."""

    def __init__(self) -> None:
        self.written = 0

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        n = super().pwritev(fd, buffers, offset)
        self.written += n
        return n


class PricedStore(Store):
    """Reads take what ``costs`` says of the disk."""

    def __init__(self, root: Path, clock: SharedClock, costs: Costs) -> None:
        self.files = CountingFiles()
        super().__init__(root, master=MasterKey(bytes(32)), files=self.files)
        self._clock, self._costs = clock, costs

    def get(self, keys: Sequence[ChunkKey], *, in_place: bool = False) -> list[memoryview | bytes | None]:
        found = super().get(keys, in_place=in_place)
        if nbytes := sum(len(payload) for payload in found if payload is not None):
            self._clock.advance(self._costs.disk_latency + nbytes * self._costs.disk_read_byte)
        return found
