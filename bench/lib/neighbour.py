"""Another process's work: OpenSSL's SHA-256 over 64 KiB blocks. Run as a program; ``Neighbour`` starts some of it.

Each line that it reads is a number of seconds to hash; it answers with the bytes hashed and the seconds taken.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

_BLOCK = bytes(1 << 16)


class Neighbour:
    """So many processes that hash at the same time."""

    def __init__(self, processes: int) -> None:
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._processes = [subprocess.Popen(command, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
        self.begin(0.01)
        self.result()

    def begin(self, seconds: float) -> None:
        for process in self._processes:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()

    def result(self) -> float:
        """Bytes per second of all together, when they are done."""
        found = [process.stdout.readline().split() for process in self._processes]
        return sum(int(nbytes) / float(seconds) for nbytes, seconds in found)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


def main() -> None:
    for line in sys.stdin:
        begin, blocks = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < float(line):
            hashlib.sha256(_BLOCK)
            blocks += 1
        print(blocks * len(_BLOCK), passed, flush=True)


if __name__ == "__main__":
    main()
