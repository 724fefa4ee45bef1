"""Other processes that want the machine: each computes OpenSSL's SHA-256 over blocks of 64 KiB.

``Neighbour`` starts this file as a program. For each line that it reads, a number of seconds, the program hashes for so
long and prints the bytes hashed and the seconds taken. ``Busy`` lets it hash without an end.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_BLOCK = bytes(1 << 16)


class Neighbour:
    """``processes`` processes that hash at the same time."""

    def __init__(self, processes: int) -> None:
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._processes = [subprocess.Popen(command, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
        self.begin(0.01)
        self.result()

    def begin(self, seconds: float) -> None:
        """Let all of them hash for ``seconds``, starting now."""
        for process in self._processes:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()

    def result(self) -> float:
        """Wait until they are done; bytes per second of all together."""
        found = [process.stdout.readline().split() for process in self._processes]
        return sum(int(nbytes) / float(seconds) for nbytes, seconds in found)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


class Busy(Neighbour):
    """Up to ``most`` processes that hash without an end, each only while it is wanted."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        for process in self._processes:
            os.kill(process.pid, signal.SIGSTOP)
        self.begin(math.inf)

    @property
    def pids(self) -> list[int]:
        """The process ids, in the order in which they become busy."""
        return [process.pid for process in self._processes]

    @contextmanager
    def hashing(self, n: int) -> Iterator[None]:
        """``n`` of the processes hash for the time of the block."""
        wanted = self._processes[:n]
        for process in wanted:
            os.kill(process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            for process in wanted:
                os.kill(process.pid, signal.SIGSTOP)


def main() -> None:
    for line in sys.stdin:
        begin, blocks = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < float(line):
            hashlib.sha256(_BLOCK)
            blocks += 1
        print(blocks * len(_BLOCK), passed, flush=True)


if __name__ == "__main__":
    main()
