"""Makes the disk read no faster than so many bytes a second, for this process and the time of a block.

As root on Linux the kernel throttles, by a cgroup for this process (v2 ``io.max``, v1 ``blkio.throttle``), below the
page cache. Elsewhere ``SlowFiles`` sleeps inside the store's own reads; ``how`` says which it was.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmaas.kvchunks.store.store import Files

_ROOT = Path("/sys/fs/cgroup")
_NAME = "llmaas-bench"


class SlowFiles(Files):
    """Reads at most ``bytes_per_s`` with all threads together, as a disk would; 0: as fast as it can."""

    bytes_per_s = 0.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle_at = 0.0
        """When the disk has done what it was asked for."""

    @contextmanager
    def at(self, bytes_per_s: float) -> Iterator[None]:
        """Read at most ``bytes_per_s`` until the end of the block."""
        self.bytes_per_s = bytes_per_s
        try:
            yield
        finally:
            self.bytes_per_s = 0.0

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        if not self.bytes_per_s:
            return super().pread_into(fd, buffer, offset)
        asked = time.perf_counter()
        with self._lock:
            n = super().pread_into(fd, buffer, offset)
            # A disk begins with what waits as soon as it is done with the last, not when a thread has woken up.
            self._idle_at = max(asked, self._idle_at) + n / self.bytes_per_s
            time.sleep(max(0.0, self._idle_at - time.perf_counter()))
            return n


class Throttle:
    """Throttles the disk that ``folder`` is on. The store there must be opened with ``files``. ``how``: in words."""

    def __init__(self, folder: Path) -> None:
        device = folder.stat().st_dev
        self._device = f"{os.major(device)}:{os.minor(device)}"
        self.files: Files = Files()
        self._group, self._file, self._line = self._find()
        self.how = f"cgroup {self._file}" if self._group else "inside the store"
        if self._group is None:
            self.files = SlowFiles()

    def _find(self) -> tuple[Path | None, str, str]:
        for parent, file, line in (
            (_ROOT, "io.max", "{device} rbps={rate}"),
            (_ROOT / "blkio", "blkio.throttle.read_bps_device", "{device} {rate}"),
        ):
            group = parent / _NAME
            try:
                group.mkdir(exist_ok=True)
                if not (group / file).exists():  # the kernel would have made it
                    group.rmdir()
                    continue
                (group / file).write_text(line.format(device=self._device, rate=1 << 30))
                return group, file, line
            except OSError:
                continue
        return None, "", ""

    @contextmanager
    def at(self, bytes_per_s: float) -> Iterator[None]:
        """Read at most ``bytes_per_s`` until the end of the block; 0: as fast as the disk can."""
        if self._group is None:
            assert isinstance(self.files, SlowFiles)
            with self.files.at(bytes_per_s):
                yield
            return
        if bytes_per_s:
            (self._group / self._file).write_text(self._line.format(device=self._device, rate=int(bytes_per_s)))
            (self._group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._group.parent / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        if self._group is not None:
            self._group.rmdir()
