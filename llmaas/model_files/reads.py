"""Brings a model's files into the page cache, by several threads in file order, while llama.cpp maps and uses them.

Law: nobody waits for it, and nothing depends on it: what was not read yet is read by whoever needs it. Pages that are
there already are not read again, and no more is read than there is memory for.

llama.cpp reads a mapped file by page faults of one thread, with a read-ahead that many systems keep small. Several
threads with large reads let a disk work on several requests at once. How many, and how large, is found out with the
first file that is read from a disk: its first parts are read in different ways, and the rest in the quickest. Rejected:
``MADV_POPULATE_READ`` and ``POSIX_FADV_WILLNEED`` of the whole file: one request after another.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from llmaas.clock import Clock, RealClock
from llmaas.frozen import frozen
from llmaas.model_files.load_memo import DiskFigures, LoadMemo, ReadPlan
from llmaas.model_files.page_cache import PAGE, resident_pages
from llmaas.regular_file import open_regular

_log = logging.getLogger(__name__)

TRIED = (ReadPlan(1, 4 << 20), ReadPlan(2, 4 << 20), ReadPlan(4, 4 << 20), ReadPlan(8, 2 << 20), ReadPlan(4, 16 << 20))
"""What is tried on a disk of which nothing is known, with ``_TRIAL`` bytes each."""
_TRIAL = 32 << 20
_BETTER = 1.1
"""More threads count as better if they read so much faster: each takes time from the cores that compute."""
_LEAST_TELLING = 64 << 20
"""What was read of less says nothing about the disk."""
_BUFFER = 1 << 20
"""Bytes that a thread reads by one call; its buffer stays in the CPU's cache."""


@frozen
class Extent:
    """A part of a file that is not in the page cache."""

    file: BinaryIO
    start: int
    stop: int


class FileReads:
    """Reads files in the background, from ``start`` until all is read or ``close``.

    ``limit``: bytes that are read at most. ``memo``: where the best way for a disk is, and is kept. ``prepare`` is
    called on the first of its threads: what it sets holds for all.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        memo: LoadMemo,
        *,
        limit: int | None = None,
        clock: Clock | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._prepare = prepare
        self._paths, self._memo, self._limit, self._clock = paths, memo, limit, clock or RealClock()
        self._stop = threading.Event()
        self.n_read = 0
        """Bytes that have been read from the disk, or from a cache that is not ours."""
        self.missing: int | None = None
        """Bytes that were not in the page cache at the beginning; None until that is known."""
        self._thread: threading.Thread | None = None
        self._began = self._clock.now()

    def start(self) -> None:
        """Begin to look what is missing, and to read it. A file that cannot be read is left to whoever needs it."""
        self._began = self._clock.now()
        self._thread = threading.Thread(target=self._run, name="reads", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when all is read."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Read no more, and return when no thread does."""
        self._stop.set()
        self.wait()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take, if it is read as fast as what has been read; None if nothing has been."""
        missing, n_read = self.missing, self.n_read
        if missing is None or not n_read:
            return None
        left = (missing if self._limit is None else min(missing, self._limit)) - n_read
        return max(0, left) * (self._clock.now() - self._began) / n_read

    # -- inside

    def _extents(self, file: BinaryIO) -> Iterator[Extent]:
        size, pages = os.fstat(file.fileno()).st_size, resident_pages(file)
        if pages is None:  # it may be warm, and then reading it would cost as much time as it saves
            return
        for first, last in missing_runs(pages):
            yield Extent(file, first * PAGE, min(last * PAGE, size))

    def _run(self) -> None:
        self._prepare()
        extents: list[Extent] = []
        with ExitStack() as opened:
            try:
                for path in self._paths:
                    extents += self._extents(opened.enter_context(open_regular(path)))
            except OSError as error:
                _log.debug("nothing is read ahead: %s", error)
                return
            self.missing = sum(extent.stop - extent.start for extent in extents)
            if not extents:
                return
            device = os.fstat(extents[0].file.fileno()).st_dev
            known = self._memo.disk(device)
            todo = ReadQueue(extents, self._limit)
            found = self._tried(todo) if known is None else None
            plan = known.plan if known is not None else found.plan if found is not None else TRIED[0]
            n_before, began = self.n_read, self._clock.now()
            self._read(todo, plan, None)
            n, seconds = self.n_read - n_before, self._clock.now() - began
            if n >= _LEAST_TELLING and seconds > 0 and not self._stop.is_set():
                found = DiskFigures(plan, n / seconds)
            if found is not None and not self._stop.is_set():
                self._memo.keep_disk(device, found)

    def _tried(self, todo: ReadQueue) -> DiskFigures | None:
        """The best of several ways; None if there was not enough to try them."""
        best: DiskFigures | None = None
        for plan in TRIED:
            n_before, began = self.n_read, self._clock.now()
            self._read(todo, plan, _TRIAL)
            n, seconds = self.n_read - n_before, self._clock.now() - began
            if n < _TRIAL // 2 or seconds <= 0 or self._stop.is_set():
                return best
            if best is None or n / seconds > _BETTER * best.rate:
                best = DiskFigures(plan, n / seconds)
        return best

    def _read(self, todo: ReadQueue, plan: ReadPlan, most: int | None) -> None:
        """Read the next ``most`` bytes, or all that is left, in this way."""
        share = todo.share(plan.chunk, most)
        threads = [
            threading.Thread(target=self._read_chunks, args=(share,), name="read", daemon=True)
            for _ in range(plan.threads - 1)
        ]
        for thread in threads:
            thread.start()
        self._read_chunks(share)
        for thread in threads:
            thread.join()

    def _read_chunks(self, share: Callable[[], Extent | None]) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        while not self._stop.is_set() and (chunk := share()) is not None:
            at = chunk.start
            try:
                while at < chunk.stop and (n := os.preadv(chunk.file.fileno(), [buffer[: chunk.stop - at]], at)):
                    at += n
            except OSError as error:
                _log.debug("cannot read ahead: %s", error)
                self._stop.set()
            with _COUNT:
                self.n_read += at - chunk.start


_COUNT = threading.Lock()


class ReadQueue:
    """Hands the bytes of extents out in order, to several threads."""

    def __init__(self, extents: Sequence[Extent], limit: int | None = None) -> None:
        self._extents, self._lock = list(reversed(extents)), threading.Lock()
        self._left = sum(e.stop - e.start for e in extents) if limit is None else max(0, limit)

    def share(self, chunk: int, most: int | None) -> Callable[[], Extent | None]:
        """A function that returns the next ``chunk`` bytes at most, until it has returned ``most`` of them; then
        None."""
        left = self._left if most is None else most

        def next_chunk() -> Extent | None:
            nonlocal left
            with self._lock:
                if not self._extents or left <= 0 or self._left <= 0:
                    return None
                first = self._extents.pop()
                stop = min(first.stop, first.start + min(chunk, self._left))
                if stop < first.stop:
                    self._extents.append(Extent(first.file, stop, first.stop))
                left -= stop - first.start
                self._left -= stop - first.start
                return Extent(first.file, first.start, stop)

        return next_chunk


def missing_runs(pages: bytes) -> Iterator[tuple[int, int]]:
    """The runs of pages that are not resident, each as its first page and the one behind its last.

    >>> list(missing_runs(bytes([1, 0, 0, 1, 0])))
    [(1, 3), (4, 5)]
    """
    at = pages.find(0)
    while at >= 0:
        end = pages.find(1, at)
        if end < 0:
            yield at, len(pages)
            return
        yield at, end
        at = pages.find(0, end)
