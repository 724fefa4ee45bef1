"""The lock and the permissions of the store's folder.

Law: one process at a time has the store open (by flock on ``lock``, which the kernel releases however the process
ends), and only the owner may access the folder and its content.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.syscalls import Files, failures


class RootLock:
    """The lock on a store folder, held until ``close``. Creates the folder. Raises StoreFailed, DiskFull."""

    def __init__(self, root: Path, files: Files) -> None:
        self._files = files
        path = root / "lock"
        with failures(root):
            make_private(root)
            self._fd = files.open(path, os.O_RDWR | os.O_CREAT)
            try:
                self._acquire(root)
                files.ftruncate(self._fd, 0)
                files.pwritev(self._fd, [memoryview(b"%d\n" % os.getpid())], 0)
            except BaseException:
                self.close()
                raise

    def _acquire(self, root: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "another process"
            raise StoreFailed(
                f"store {root} is in use by process {holder}",
                hint="Stop that process, or use another store folder.",
            ) from error

    def close(self) -> None:
        """Release the lock. The file stays: without it, two processes could each hold a lock called ``lock``."""
        self._files.close(self._fd)


def make_private(root: Path) -> None:
    """Make ``root`` and ``root/payload`` with mode 0700.

    An existing folder gets that mode if it is empty or holds a store. Any other folder belongs to somebody else, and
    its mode stays as it is.
    """
    if not root.exists():
        root.mkdir(parents=True, mode=0o700)
    elif not any(root.iterdir()) or (root / "index.sqlite").exists():
        root.chmod(0o700)
    (root / "payload").mkdir(mode=0o700, exist_ok=True)
