"""Payload files: the bytes of coded chunks, appended and read in large runs.

Law: the bytes mean nothing here. A place (file, offset) that was ever indexed is never given other bytes, and a file
number never comes back, so a reader with an outdated index row finds the old bytes or none, never another chunk's.

No fsync on append: what a power cut tears, the chunk's own checksum catches, and the chunk is recomputed.
Rejected: mmap, because a file that is cut short or a bad sector then kills the process (SIGBUS).
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from llmaas.errors import DiskFull, StoreFailed
from llmaas.kvchunks.store.rows import Place
from llmaas.kvchunks.store.syscalls import Files, failures

log = logging.getLogger(__name__)

MAX_RUN = 64 << 20
"""Longest single read, and buffer, in bytes."""
_COPY_RUN = 4 << 20
_IOV = 512
"""Buffers per pwritev; Linux allows 1024."""


class PayloadFiles:
    """The folder of payload files, named ``<8 hex digits>.kv``. Raises DiskFull, StoreFailed.

    ``reserve``: bytes of the disk that appends leave free. Chunks can be recomputed, tokens cannot: the last room is
    for tokens (and for the log rows that a discard needs, and the copy that a compaction makes).
    """

    def __init__(self, folder: Path, files: Files, *, reserve: int) -> None:
        self.folder = folder
        self._files = files
        self._reserve = reserve
        self.written = 0

    def path(self, file: int) -> Path:
        return self.folder / f"{file:08x}.kv"

    def sizes(self) -> dict[int, int]:
        """File number -> bytes, of all payload files that are there."""
        with failures(self.folder):
            names = self._files.list_sizes(self.folder)
        return {int(name[:-3], 16): size for name, size in names.items() if is_payload_name(name)}

    def size(self, file: int) -> int:
        with failures(self.path(file)):
            return self._files.path_size(self.path(file))

    # -- writing

    def append(self, file: int, views: Sequence[memoryview], *, start: int) -> int:
        """Write ``views`` one after the other behind the file's end; the offset of the first.

        ``start`` is where the index says that the file ends, 0 for a new file. A crash may have left the file
        longer (the surplus is dead) or a power cut shorter (those chunks are lost): the larger of both is safe, and
        the only choice that never covers a place that a row names. If a write fails, the file is as before.
        """
        self._ask_room(sum(map(len, views)))
        with self._opened(file, os.O_WRONLY | os.O_CREAT | (0 if start else os.O_EXCL)) as fd:
            offset = max(start, self._files.size(fd)) if start else 0
            try:
                self._write_all(fd, views, offset)
            except BaseException:
                self.cut(file, offset)
                raise
            return offset

    def _ask_room(self, size: int) -> None:
        with failures(self.folder):
            room = self._files.room(self.folder)
        if room < size + self._reserve:
            raise DiskFull(
                f"{self.folder}: no room for {size} bytes of chunks ({room} free, {self._reserve} kept for tokens)"
            )

    def cut(self, file: int, offset: int) -> None:
        """Take back an append that never got its index rows. If that fails too, the bytes are just dead."""
        if offset == 0:
            self.unlink(file)
            return
        try:
            with self._opened(file, os.O_WRONLY) as fd:
                self._files.ftruncate(fd, offset)
        except Exception as error:
            log.warning("dead bytes stay behind in %s: %s", self.path(file), error)

    def copy(self, old: int, new: int, places: Sequence[Place]) -> list[int]:
        """Write the chunks at ``places`` of ``old``, in order, to the new file ``new``; their new offsets.

        Synced to disk, unlike an append: bytes that were long safe must not be at risk because they were moved.
        """
        with self._opened(old, os.O_RDONLY) as src, self._opened(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as dst:
            try:
                offsets, at = [], 0
                for run in runs(places, _COPY_RUN):
                    view = self._read(src, run[0].offset, run[-1].end - run[0].offset)
                    if len(view) < run[-1].end - run[0].offset:
                        raise OSError(errno.EIO, "payload file is shorter than its index", str(self.path(old)))
                    self._write_all(dst, [view], at)
                    offsets += [at + place.offset - run[0].offset for place in run]
                    at += len(view)
                self._files.fdatasync(dst)
            except BaseException:
                self.unlink(new)
                raise
        return offsets

    def _write_all(self, fd: int, views: Sequence[memoryview], offset: int) -> None:
        todo = deque(views)
        while todo:
            n = self._files.pwritev(fd, list(islice(todo, _IOV)), offset)
            if n <= 0:
                raise OSError(errno.EIO, "nothing could be written")
            self.written += n
            offset += n
            while todo and n >= len(todo[0]):
                n -= len(todo.popleft())
            if n:
                todo[0] = todo[0][n:]

    def unlink(self, file: int) -> int:
        """Delete the file; bytes freed. A failure leaves a file that no row names; the next opening sweeps it."""
        try:
            size = self._files.path_size(self.path(file))
            self._files.unlink(self.path(file))
        except FileNotFoundError:
            return 0
        except OSError as error:
            log.warning("cannot delete %s: %s", self.path(file), error)
            return 0
        return size

    # -- reading

    def read(self, places: Sequence[Place]) -> Iterator[tuple[Place, memoryview | None]]:
        """Each place with its bytes; None where the file is missing, too short or unreadable there.

        Neighbours are read in one go into one buffer, which lives as long as any view of it.
        """
        for run in runs(places, MAX_RUN):
            try:
                with self._opened(run[0].file, os.O_RDONLY) as fd:
                    self._files.once(fd)
                    found = self._read_run(fd, run)
            except _Missing:
                found = [(place, None) for place in run]
            yield from found

    def _read_run(self, fd: int, run: Sequence[Place]) -> list[tuple[Place, memoryview | None]]:
        first = run[0].offset
        try:
            view = self._read(fd, first, run[-1].end - first)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            log.warning("%s: %s", self.path(run[0].file), error)
            if len(run) == 1:
                return [(run[0], None)]
            return [pair for place in run for pair in self._read_run(fd, [place])]  # save what a bad sector leaves
        return [(p, view[p.offset - first : p.end - first] if p.end - first <= len(view) else None) for p in run]

    def _read(self, fd: int, offset: int, size: int) -> memoryview:
        """``size`` bytes from ``offset`` on, fewer at the end of the file."""
        # numpy, because it does not clear what is overwritten at once. No fadvise(WILLNEED or SEQUENTIAL) before
        # the read: measured, it is 20-30 % slower on a cold 32 MB run (22 against 17.5 ms) and no faster on 4 MB.
        view = np.empty(size, np.uint8).data
        done = 0
        while done < size:
            n = self._files.pread_into(fd, view[done:], offset + done)
            if n == 0:
                break
            done += n
        return view[:done]

    def evict_page_cache(self) -> None:
        for file in self.sizes():
            with self._opened(file, os.O_RDONLY) as fd:
                self._files.fdatasync(fd)  # dirty pages cannot be dropped
                self._files.dont_need(fd)

    @contextmanager
    def _opened(self, file: int, flags: int) -> Iterator[int]:
        path = self.path(file)
        with failures(path):
            try:
                fd = self._files.open(path, flags)
            except FileNotFoundError as error:
                raise _Missing(f"{path} is missing") from error
            try:
                yield fd
            finally:
                self._files.close(fd)


class _Missing(StoreFailed):
    """The payload file is not there."""


def is_payload_name(name: str) -> bool:
    return len(name) == 11 and name.endswith(".kv") and all(c in "0123456789abcdef" for c in name[:8])


def runs(places: Sequence[Place], limit: int) -> Iterator[list[Place]]:
    """``places`` sorted and cut into runs that lie side by side in one file, each at most ``limit`` bytes (or
    one chunk).
    """
    run: list[Place] = []
    for place in sorted(places, key=lambda p: (p.file, p.offset)):
        if run and (place.file, place.offset) == (run[-1].file, run[-1].end) and place.end - run[0].offset <= limit:
            run.append(place)
            continue
        if run:
            yield run
        run = [place]
    if run:
        yield run
