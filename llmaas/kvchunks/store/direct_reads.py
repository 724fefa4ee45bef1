"""Reads parts of files past the page cache, into memory where chunks can stay.

Law: what it gives is what an ordinary read gives, and nobody else views it. Where the file system cannot do it, or the
part is in the page cache already, it gives None, and the caller reads as usual.

A chunk that the POOL is to hold need not be in the page cache as well. Past it a read takes a third of the CPU time,
and its bytes come evenly: the kernel's reading ahead has the disk do megabytes at once, of which the first come late.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from llmaas.kvchunks.store.chunk_memory import MEMORY, MOST
from llmaas.kvchunks.store.syscalls import DIRECT, PAGE, Files

_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP)
_MOST = MOST - 2 * PAGE


class DirectReads:
    def __init__(self, files: Files) -> None:
        self._files = files

    def open(self, path: Path) -> int:
        """For ``read``; of a file system that cannot do it, for reading as usual. Raises OSError."""
        try:
            return self._files.open(path, os.O_RDONLY | DIRECT)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        fd = self._files.open(path, os.O_RDONLY)
        self._files.advise_read_once(fd)
        return fd

    def read(self, fd: int, offset: int, size: int) -> memoryview | None:
        """``size`` bytes from ``offset`` on; None if they are to be read as usual: then ``fd`` is for that from now on.
        Raises OSError.
        """
        if size <= _MOST and not self._files.is_cached(fd, offset, size):
            view = self._read_pages(fd, offset, size)
            if view is not None:
                return view
        self._files.end_direct(fd)
        self._files.advise_read_once(fd)
        return None

    def _read_pages(self, fd: int, offset: int, size: int) -> memoryview | None:
        """Whole pages, at and into whole pages, which every file system that can do it can do."""
        before = offset % PAGE
        end = -(-(before + size) // PAGE) * PAGE
        view, done = MEMORY.take_for_reading(end), 0
        try:
            while done < end:
                n = self._files.pread_into(fd, view[done:], offset - before + done)
                done += n
                if n % PAGE or not n:  # the end of the file
                    break
        except OSError as error:
            if error.errno in _CANNOT:
                return None
            raise
        return view[before : before + size] if done >= before + size else None
