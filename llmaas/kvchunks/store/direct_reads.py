"""Reads parts of files past the page cache, into memory where chunks can stay.

Law: what it gives is what an ordinary read gives, and nobody else views it. Where the file system cannot do it, or the
part is in the page cache already, it gives None, and the caller reads as usual.

A chunk that the POOL is to hold need not be in the page cache as well. Past it a read takes a third of the CPU time,
and its bytes come evenly: the kernel's reading ahead has the disk do megabytes at once, of which the first come late.
"""

from __future__ import annotations

import errno

from llmaas.kvchunks.store.chunk_memory import MEMORY, MOST
from llmaas.kvchunks.store.syscalls import PAGE, Files

_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP)
_MOST = MOST - 2 * PAGE


class DirectReads:
    def __init__(self, files: Files) -> None:
        self._files = files

    def read(self, fd: int, offset: int, size: int) -> memoryview | None:
        """``size`` bytes from ``offset`` on; None if they are to be read as usual. Raises OSError."""
        if size > _MOST or self._files.is_cached(fd, offset, size) or not self._files.set_direct(fd, True):
            return None
        try:
            return self._read_pages(fd, offset, size)
        finally:
            self._files.set_direct(fd, False)

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
