"""Opening files whose paths come from a person or an app, replacing files, and making the names of new ones durable.

Law: neither the opening nor the reading ever waits for another process. A path can name a FIFO, which waits for a
writer, or a device such as /dev/zero, which never ends; only regular files are opened.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading. Raises OSError, with a ``strerror`` that says why.

    The type is checked after the file is open, so that nobody can put another one in its place in between.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def sync_folder(path: Path) -> None:
    """Make new names in the folder ``path`` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path, mode: int) -> Iterator[int]:
    """The descriptor of a new file with this ``mode``, which gets the name ``path`` when the block has ended and it is
    on disk: whoever reads it gets the old one or the new one. Raises OSError; then, or if the block raises, the old
    file is as it was.

    The new file has a name that no other writer uses and nobody can foresee, so that nothing stands in its way.
    """
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        try:
            os.fchmod(fd, mode)
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Have ``data`` stand in a file of this name, as ``replacing`` does."""
    with replacing(path, mode) as fd:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
