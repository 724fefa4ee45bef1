"""What the demo's daemon takes of the memory.

Law: figures are the kernel's own, from /proc/<pid>/status; nothing is asked of the daemon about itself.
"""

from __future__ import annotations

import threading
from pathlib import Path

from llmaas.clock import RealClock
from llmaas.frozen import frozen

_SAMPLE_S = 0.1


@frozen
class Memory:
    """Resident bytes of a process: anonymous, of files (each mapped page once), in all, and the most ever."""

    anon: int
    file: int
    rss: int
    peak: int


def memory_of(pid: int) -> Memory | None:
    """None once the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return None
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    names = ("RssAnon", "RssFile", "RssShmem", "VmRSS", "VmHWM")
    if any(name not in rows for name in names):
        return None  # a zombie has no memory any more
    anon, file, shared, rss, peak = (int(rows[name].split()[0]) * 1024 for name in names)
    return Memory(anon, file + shared, rss, peak)


class MemoryWatch:
    """Samples the memory of a process ten times a second, with seconds since ``start_time`` (of RealClock)."""

    def __init__(self, start_time: float) -> None:
        self.samples: list[tuple[float, Memory]] = []
        self._start = start_time
        self._clock = RealClock()
        self._pid: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def now(self) -> Memory | None:
        return self.samples[-1][1] if self.samples else None

    @property
    def peak(self) -> Memory | None:
        """The sample with the kernel's highest high-water mark."""
        return max((memory for _, memory in list(self.samples)), key=lambda memory: memory.peak, default=None)

    @property
    def fullest(self) -> Memory | None:
        """The sample with the most resident bytes: what the peak is made of."""
        return max((memory for _, memory in list(self.samples)), key=lambda memory: memory.rss, default=None)

    def watch(self, pid: int) -> None:
        self._pid = pid

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            memory = memory_of(self._pid) if self._pid is not None else None
            if memory is not None:
                self.samples.append((self._clock.now() - self._start, memory))
