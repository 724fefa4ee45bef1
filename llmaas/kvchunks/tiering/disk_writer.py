"""The swap writer: brings chunks of the POOL to the store, in the background and out of everyone's way.

Law: it decides nothing. One thread of low CPU and I/O priority writes neighbours in runs of a few megabytes, at most so
many bytes a second; jobs are done in the order in which they were asked for. A write that is stopped reports what has
not been written yet as not written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from llmaas.clock import Clock, RealClock
from llmaas.engine.thread import lower_cpu_priority, lower_io_priority
from llmaas.errors import DiskFull, MachineError
from llmaas.kvchunks.codec.codec import CodedChunk, read_header
from llmaas.kvchunks.store.store import Store
from llmaas.planner.actions import PersistSensitivity, WriteChunks
from llmaas.planner.events import Written
from llmaas.records import ChunkKey, ChunkMeta, ChunkSensitivity

log = logging.getLogger(__name__)

_RUN = 4 << 20
"""Bytes written in one go: enough for a device to be efficient, and the most that a stop has to wait for."""
Item = tuple[ChunkKey, int, CodedChunk]


class DiskWriter:
    """``rate``: bytes a second, 0 for as fast as it goes. All methods return at once; the thread works later."""

    def __init__(self, store: Store, rate: float = 0.0, clock: Clock | None = None) -> None:
        self._store, self._rate, self._clock = store, rate, clock or RealClock()
        self._thread = ThreadPoolExecutor(1, "write", _be_nice)
        self._undiscarded: list[ChunkKey] = []
        self._stopped: set[int] = set()
        self._closing = False
        self._hurry = threading.Event()
        """Nothing is paced now: a write was stopped, or the service ends."""

    def close(self) -> None:
        """Return when everything that was asked for is done."""
        self._closing = True
        self._hurry.set()
        self._thread.shutdown(wait=True)

    def write(self, action: WriteChunks, payloads: Sequence[CodedChunk], done: Callable[[Written], None]) -> None:
        """Begin a write of ``payloads``, parallel to the action's keys; ``done`` is called on the worker thread."""
        self._thread.submit(self._write, action, payloads, done)

    def stop(self, write: int) -> None:
        """Write nothing more of it than what is being written now. One that has ended is left alone."""
        self._stopped.add(write)
        self._hurry.set()

    def persist_sensitivity(self, action: PersistSensitivity) -> None:
        self._thread.submit(self._persist_sensitivity, dict(action.sensitivities))

    def discard(self, keys: Sequence[ChunkKey]) -> None:
        self._thread.submit(self._discard, tuple(keys))

    # -- on the thread

    def _write(self, action: WriteChunks, payloads: Sequence[CodedChunk], done: Callable[[Written], None]) -> None:
        written: dict[ChunkKey, int] = {}
        full = False
        if action.write not in self._stopped and not self._closing:
            self._hurry.clear()  # the write that it was meant for has ended
        try:
            if self._undiscarded:
                self._discard(())
            # A put passes over keys that still have a row: their old bytes would be taken for these.
            stale = set(self._undiscarded)
            items, notes = [], {}
            for key, payload, sensitivity in zip(action.keys, payloads, action.sensitivities, strict=True):
                if key not in stale:
                    head = read_header(payload)
                    items.append((key, head.n_tokens, payload))
                    notes[key] = ChunkMeta(head.precision, sensitivity)
            for run in _runs(items):
                if action.write in self._stopped:
                    break
                began = self._clock.now()
                self._store.put(action.context, run, {key: notes[key] for key, _, _ in run})
                written.update((key, len(payload)) for key, _, payload in run)
                self._pace(sum(len(payload) for _, _, payload in run), self._clock.now() - began)
        except MachineError as e:
            log.warning("%d chunks stay in memory: %s", len(action.keys) - len(written), e.message)
            full = isinstance(e, DiskFull)
        except Exception:
            log.exception("write %d failed; its chunks stay in memory", action.write)
        self._stopped.discard(action.write)
        done(Written(action.write, tuple(written.get(key, 0) for key in action.keys), full))

    def _pace(self, nbytes: int, seconds: float) -> None:
        if self._rate and (rest := nbytes / self._rate - seconds) > 0:
            self._hurry.wait(rest)

    def _persist_sensitivity(self, sensitivities: dict[ChunkKey, ChunkSensitivity]) -> None:
        try:
            self._store.persist_sensitivity(sensitivities)
        except Exception as e:
            log.warning("what was learnt of %d chunks is not kept: %r", len(sensitivities), e)

    def _discard(self, keys: tuple[ChunkKey, ...]) -> None:
        self._undiscarded += keys
        try:
            self._store.discard(self._undiscarded)
            self._undiscarded = []
        except MachineError as e:
            log.warning("%d chunks are discarded later: %s", len(self._undiscarded), e.message)
        except Exception:
            log.exception("cannot discard %d chunks", len(self._undiscarded))


def _be_nice() -> None:
    lower_cpu_priority()
    lower_io_priority()


def _runs(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items in runs of about ``_RUN`` bytes."""
    run: list[Item] = []
    nbytes = 0
    for item in items:
        run.append(item)
        nbytes += len(item[2])
        if nbytes >= _RUN:
            yield run
            run, nbytes = [], 0
    if run:
        yield run
