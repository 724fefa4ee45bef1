"""The store's system calls, and how their errors become llmaas errors.

Law: every system call of the store on payload files, and every SQLite connection, goes through a ``Files``, so that a
test can make any one of them fail. No OSError or sqlite3.Error leaves the store: ``failures`` turns them into DiskFull
or StoreFailed with the path in the message.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from llmaas.errors import DiskFull, MachineError, StoreFailed
from llmaas.regular_file import sync_folder

CORRUPT_HINT = (
    "'llmaas doctor --repair' moves the damaged index aside (nothing is deleted) and keeps every conversation that can "
    "still be read."
)


DISK_HINT = (
    "The disk has failed, or is read-only: see the kernel's log (dmesg), check the disk (fsck), mount it for writing "
    "and start the daemon again, or give another --data-dir."
)
_DISK_TROUBLE = (errno.EROFS, errno.EIO)
_SQLITE_DISK_TROUBLE = ("readonly database", "disk I/O error")
"""In the texts of SQLITE_READONLY and SQLITE_IOERR."""


class IndexDamaged(StoreFailed):
    """The index is damaged as a database."""

    hint = CORRUPT_HINT


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_LEAST_ROOM = 128 * 1024
"""Bytes. With less free than this, SQLite's unspecific I/O errors are taken for a full disk."""


PAGE = mmap.PAGESIZE
DIRECT = getattr(os, "O_DIRECT", 0)
"""For ``open``: read past the page cache."""
_libc = ctypes.CDLL(None)
_quick_libc = ctypes.PyDLL(None)
"""For calls that take microseconds: whoever gives the GIL away for them waits much longer to get it back."""
_CACHESTAT = 451
"""Number of the system call ``cachestat`` (Linux 6.5), the same on all machines."""


class Files:
    """The real calls. Tests subclass it to inject faults and short transfers."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def drop_cached(self, fd: int) -> None:
        """Drop the file from the page cache."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def advise_read_once(self, fd: int) -> None:
        """Tell the kernel that what is read from ``fd`` is kept elsewhere, so that it does not displace what others use
        of the page cache.
        """
        with suppress(OSError, AttributeError):  # only a hint; kernels before 6.3 do not know it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NOREUSE)

    def is_cached(self, fd: int, offset: int, size: int) -> bool:
        """Whether most of that part of the file is in the page cache."""
        n_cached = _n_cached(fd, offset, size)
        if n_cached is not None:
            return n_cached * PAGE * 2 > size
        first = offset // PAGE * PAGE
        try:
            with mmap.mmap(fd, size + offset - first, mmap.MAP_SHARED, mmap.PROT_READ, offset=first) as view:
                pages = np.zeros(-(-len(view) // PAGE), np.uint8)
                address = np.frombuffer(view, np.uint8)
                failed = _libc.mincore(
                    ctypes.c_void_p(address.ctypes.data), ctypes.c_size_t(len(view)), ctypes.c_void_p(pages.ctypes.data)
                )
                del address
        except (OSError, ValueError):
            return True
        return bool(failed) or int((pages & 1).sum()) * 2 > len(pages)

    def end_direct(self, fd: int) -> None:
        """Read through the page cache from now on, though ``fd`` was opened with ``DIRECT``."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~DIRECT)

    def list_sizes(self, folder: Path) -> dict[str, int]:
        """Name and size in bytes of every plain file in ``folder``."""
        found = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # unlinked by a discard since the folder was listed
                    continue
        return found

    def path_size(self, path: Path) -> int:
        """Bytes; 0 if there is no such file."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

    def room(self, folder: Path) -> int:
        """Bytes that users without privileges may still write to the file system of ``folder``."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def sync_folder(self, path: Path) -> None:
        """Make new names in the folder ``path`` durable."""
        sync_folder(path)

    def connect(self, path: Path) -> sqlite3.Connection:
        """A connection in autocommit mode that any one thread at a time may use."""
        return sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)


@contextmanager
def failures(path: Path) -> Iterator[None]:
    """Turn OSError and sqlite3.Error in the block into DiskFull or StoreFailed. ``path`` is for the message."""
    try:
        yield
    except sqlite3.Error as error:
        raise _from_sqlite(error, path) from error
    except UnicodeDecodeError as error:  # a message of SQLite's that quotes damaged text
        raise IndexDamaged(f"{path} is damaged: its tables have impossible names") from error
    except OSError as error:
        text = f"{error.filename or path}: {error.strerror or error}"
        if error.errno in _NO_ROOM:
            raise DiskFull(text) from error
        raise StoreFailed(text, hint=DISK_HINT if error.errno in _DISK_TROUBLE else None) from error


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file's content, not the access to it, is wrong.

    By message, because ``sqlite_errorcode`` is newer than Python 3.10; the texts are those of
    ``sqlite3_errstr`` for SQLITE_CORRUPT and SQLITE_NOTADB.
    """
    return "malformed" in str(error) or "not a database" in str(error)


def _from_sqlite(error: sqlite3.Error, path: Path) -> MachineError:
    if "disk is full" in str(error):  # SQLITE_FULL
        return DiskFull(f"{path}: {error}")
    if is_corrupt(error):
        return IndexDamaged(f"{path} is damaged: {error}")
    if isinstance(error, sqlite3.OperationalError) and _room(path.parent) < _LEAST_ROOM:
        return DiskFull(f"{path}: {error}")
    in_trouble = any(text in str(error) for text in _SQLITE_DISK_TROUBLE)
    return StoreFailed(f"{path}: {error}", hint=DISK_HINT if in_trouble else None)


def _n_cached(fd: int, offset: int, size: int) -> int | None:
    """How many pages of that part of a file are in the page cache; None where the kernel has no such call."""
    if sys.platform != "linux" or hasattr(sys, "getandroidapilevel"):  # Android ends apps that make this call
        return None
    part, found = (ctypes.c_uint64 * 2)(offset, size), (ctypes.c_uint64 * 5)()
    failed = _quick_libc.syscall(ctypes.c_long(_CACHESTAT), ctypes.c_int(fd), part, found, ctypes.c_uint(0))
    return None if failed else int(found[0])


def _room(folder: Path) -> int:
    try:
        return Files().room(folder)
    except OSError:
        return _LEAST_ROOM
