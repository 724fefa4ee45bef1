"""Writes chunks of the POOL to the store, in the background, without slowing down anybody else.

Law: it decides nothing. One thread of low CPU and I/O priority writes chunks in runs of a few megabytes, at a limited
rate, and does its jobs in the order in which they were asked for. What a stopped write has not written yet is reported
as not written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from llmaas.clock import Clock, RealClock
from llmaas.errors import DiskFull, MachineError
from llmaas.host.thread_priority import lower_cpu_priority, lower_io_priority
from llmaas.kvchunks.codec.codec import CodedChunk, read_header
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.workers import Workers
from llmaas.planner.actions import PersistSensitivity, WriteChunks
from llmaas.planner.events import FAILED, Stored, Written
from llmaas.records import ChunkKey, ChunkMeta, ChunkSensitivity, ContextId

log = logging.getLogger(__name__)

_RUN = 4 << 20
"""Bytes written in one go: enough for a device to be efficient, and the most that a stop has to wait for."""


class _Item(NamedTuple):
    """A chunk to write."""

    key: ChunkKey
    n_tokens: int
    payload: CodedChunk
    meta: ChunkMeta


class DiskWriter:
    """``rate`` is in bytes a second, 0 for no limit. All methods but ``close`` return at once."""

    def __init__(self, store: Store, rate: float = 0.0, clock: Clock | None = None) -> None:
        self._store, self._rate, self._clock = store, rate, clock or RealClock()
        self._thread = Workers(1, "write", _lower_priority)
        self._undiscarded: list[ChunkKey] = []
        """Chunks whose discard failed. It is tried again before the next write or discard."""
        self._stopped: set[int] = set()
        self._closing = False
        self._hurry = threading.Event()
        """While this is set, the rate is not limited: a write is being stopped, or the service ends."""

    def close(self) -> None:
        """Return when everything that was asked for is done."""
        self._closing = True
        self._hurry.set()
        self._thread.shutdown(wait=True)

    def write(self, action: WriteChunks, payloads: Sequence[CodedChunk], done: Callable[[Written], None]) -> None:
        """Begin a write of ``payloads``, parallel to the action's keys; ``done`` is called on the worker thread."""
        self._thread.submit(self._write, action, payloads, done)

    def stop(self, write: int) -> None:
        """Write nothing more of this write than the run that is being written now. Does nothing once it has ended."""
        self._stopped.add(write)
        self._hurry.set()

    def persist_sensitivity(self, action: PersistSensitivity) -> None:
        """Store what was measured of chunks after they were written."""
        self._thread.submit(self._persist_sensitivity, dict(action.sensitivities))

    def discard(self, keys: Sequence[ChunkKey]) -> None:
        """Discard chunks from the store."""
        self._thread.submit(self._discard, tuple(keys))

    # -- on the thread

    def _write(self, action: WriteChunks, payloads: Sequence[CodedChunk], done: Callable[[Written], None]) -> None:
        written: dict[ChunkKey, int] = {}
        full = False
        if action.write not in self._stopped and not self._closing:
            self._hurry.clear()  # the write that was stopped has ended
        try:
            for run in _runs(self._writable(action, payloads)):
                if action.write in self._stopped:
                    break
                self._put(action.context, run)
                written.update((item.key, len(item.payload)) for item in run)
        except MachineError as e:
            log.warning("%d chunks stay in memory: %s", len(action.keys) - len(written), e.message)
            full = isinstance(e, DiskFull)
        except Exception:
            log.exception("write %d failed; its chunks stay in memory", action.write)
        self._stopped.discard(action.write)
        outcomes = tuple(Stored(written[key]) if key in written else FAILED for key in action.keys)
        done(Written(action.write, outcomes, full))

    def _writable(self, action: WriteChunks, payloads: Sequence[CodedChunk]) -> list[_Item]:
        """The chunks that can be written now: not those that the store still holds, since their discard failed.

        A put skips keys that have a row: their old bytes would be taken for these.
        """
        if self._undiscarded:
            self._discard(())
        stale = set(self._undiscarded)
        items = []
        for key, payload, sensitivity in zip(action.keys, payloads, action.sensitivities, strict=True):
            if key not in stale:
                # The header, not the action, says how these very bytes are coded. It is read only here.
                head = read_header(payload)
                items.append(_Item(key, head.n_tokens, payload, ChunkMeta(head.precision, sensitivity)))
        return items

    def _put(self, context: ContextId, run: Sequence[_Item]) -> None:
        """Store a run of chunks, and wait for as long as the rate demands."""
        began = self._clock.now()
        self._store.put(context, [item[:3] for item in run], {item.key: item.meta for item in run})
        if self._rate:
            nbytes = sum(len(item.payload) for item in run)
            seconds = nbytes / self._rate - (self._clock.now() - began)
            if seconds > 0:
                self._hurry.wait(seconds)

    def _persist_sensitivity(self, sensitivities: dict[ChunkKey, ChunkSensitivity]) -> None:
        try:
            self._store.persist_sensitivity(sensitivities)
        except Exception as e:
            log.warning("what was measured of %d chunks is not stored: %r", len(sensitivities), e)

    def _discard(self, keys: tuple[ChunkKey, ...]) -> None:
        self._undiscarded += keys
        try:
            self._store.discard(self._undiscarded)
            self._undiscarded = []
        except MachineError as e:
            log.warning("%d chunks are discarded later: %s", len(self._undiscarded), e.message)
        except Exception:
            log.exception("cannot discard %d chunks", len(self._undiscarded))


def _lower_priority() -> None:
    lower_cpu_priority()
    lower_io_priority()


def _runs(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Items in runs of about ``_RUN`` bytes."""
    run: list[_Item] = []
    nbytes = 0
    for item in items:
        run.append(item)
        nbytes += len(item.payload)
        if nbytes >= _RUN:
            yield run
            run, nbytes = [], 0
    if run:
        yield run
