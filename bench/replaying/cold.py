"""Keeps a program's files out of the page cache, which is RAM that no budget counts.

Law: what is dirty is written first; the program does not notice anything but that its files are on the disk.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class ColdFiles:
    """The files below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._synced: dict[Path, int] = {}

    def drop(self) -> None:
        """Write what is dirty and let the kernel forget the pages. Files that a program maps stay."""
        for path in self._folder.rglob("*"):
            with suppress(OSError):  # it may be gone by now
                if path.is_file() and not path.is_symlink():
                    self._drop(path)

    def _drop(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            changed = os.fstat(fd).st_mtime_ns
            if self._synced.get(path) != changed:
                os.fdatasync(fd)
                self._synced[path] = changed
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
