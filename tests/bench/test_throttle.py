"""The disk that a bench slows down: as many bytes a second as it says, and no less because a thread wakes up late."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.lib.throttle import SlowFiles


def test_reads_that_wait_for_each_other_take_as_long_as_their_bytes(tmp_path: Path) -> None:
    path, files, n = tmp_path / "file", SlowFiles(), 40
    path.write_bytes(bytes(1 << 20))
    fd = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(4) as pool, files.at(100e6):
            begin = time.perf_counter()
            read = list(pool.map(lambda _: files.pread_into(fd, memoryview(bytearray(100_000)), 0), range(n)))
            spent = time.perf_counter() - begin
        assert read == [100_000] * n and spent >= n * 100_000 / 100e6
        begin = time.perf_counter()
        files.pread_into(fd, memoryview(bytearray(100_000)), 0)  # the disk that it was
        assert time.perf_counter() - begin < 10
    finally:
        os.close(fd)
