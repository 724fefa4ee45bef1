"""Other processes that want the machine: each computes OpenSSL's SHA-256 over blocks of 64 KiB.

``Neighbour`` starts this file as a program. For each line that it reads, a number of seconds, the program hashes for so
long and prints the bytes hashed and the seconds taken.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

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


def main() -> None:
    for line in sys.stdin:
        begin, blocks = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < float(line):
            hashlib.sha256(_BLOCK)
            blocks += 1
        print(blocks * len(_BLOCK), passed, flush=True)


if __name__ == "__main__":
    main()
