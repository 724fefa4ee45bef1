"""The store's door to the operating system, and how its failures are named.

Law: every system call of the store on payload files, and every SQLite connection, goes through a
``Files``, so that a test can make any one of them fail. Nothing above lets an OSError or a
sqlite3.Error out: ``failures`` turns them into DiskFull or StoreFailed with the path in the message.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llmaas.errors import DiskFull, MachineError, StoreFailed

CORRUPT_HINT = (
    "'llmaas doctor --repair' moves the damaged index aside (nothing is deleted) and keeps every conversation that can "
    "still be read."
)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_LEAST_ROOM = 128 * 1024
"""With fewer free bytes than this, SQLite's unspecific I/O errors are put down to a full disk."""


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

    def dont_need(self, fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def once(self, fd: int) -> None:
        """What is read by ``fd`` is kept elsewhere: it must not push out what others use of the page cache."""
        with suppress(OSError, AttributeError):  # a wish; kernels before 6.3 know no such thing
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NOREUSE)

    def list_sizes(self, folder: Path) -> dict[str, int]:
        """Name -> size of every plain file in ``folder``."""
        found = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # unlinked by a discard while we listed
                    continue
        return found

    def path_size(self, path: Path) -> int:
        """0 if there is no such file."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

    def room(self, folder: Path) -> int:
        """Free bytes of the file system that holds ``folder``, for users without privileges."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def sync_folder(self, path: Path) -> None:
        """Make new names in ``path`` durable."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def connect(self, path: Path) -> sqlite3.Connection:
        """A connection in autocommit mode that any one thread at a time may use."""
        return sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)


@contextmanager
def failures(path: Path) -> Iterator[None]:
    """Give the operating system's and SQLite's errors their llmaas names."""
    try:
        yield
    except sqlite3.Error as error:
        raise _of_sqlite(error, path) from error
    except OSError as error:
        kind = DiskFull if error.errno in _NO_ROOM else StoreFailed
        raise kind(f"{error.filename or path}: {error.strerror or error}") from error


def is_corrupt(error: sqlite3.Error) -> bool:
    """True if SQLite says that the file's content, not the access to it, is wrong.

    By message, because ``sqlite_errorcode`` is newer than Python 3.10; the texts are those of
    ``sqlite3_errstr`` for SQLITE_CORRUPT and SQLITE_NOTADB.
    """
    return "malformed" in str(error) or "not a database" in str(error)


def _of_sqlite(error: sqlite3.Error, path: Path) -> MachineError:
    if "disk is full" in str(error):  # SQLITE_FULL
        return DiskFull(f"{path}: {error}")
    if is_corrupt(error):
        return StoreFailed(f"{path} is damaged: {error}", hint=CORRUPT_HINT)
    if isinstance(error, sqlite3.OperationalError) and _room(path.parent) < _LEAST_ROOM:
        return DiskFull(f"{path}: {error}")
    return StoreFailed(f"{path}: {error}")


def _room(folder: Path) -> int:
    try:
        return Files().room(folder)
    except OSError:
        return _LEAST_ROOM
