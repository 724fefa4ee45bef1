"""What a program takes of the machine: memory over time, bytes read and written, CPU seconds, and energy.

Law: the kernel's own figures, of the program's process alone, read from outside while it works. Linux only.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lib.probes import cpu, memory

_EVERY_S = 0.25
_ENERGY = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Reading:
    """Of a process since it began; energy is the machine's, None where nothing measures it."""

    read_bytes: int
    written_bytes: int
    cpu_s: float
    energy_j: float | None


def reading(pid: int) -> Reading:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text("ascii").splitlines())
    return Reading(int(fields["read_bytes"]), int(fields["write_bytes"]), cpu(pid), energy())


def energy(root: Path = _ENERGY) -> float | None:
    """Joules that the processor's packages have taken, by RAPL; None if they cannot be read."""
    packages = [path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1]
    try:
        return sum(int((path / "energy_uj").read_text("ascii")) for path in packages) / 1e6 if packages else None
    except OSError:
        return None


def difference(begin: Reading, end: Reading) -> dict[str, Any]:
    """What was used from ``begin`` to ``end``. The counter of energy can have begun anew: then there is no figure."""
    joules = None if begin.energy_j is None or end.energy_j is None else end.energy_j - begin.energy_j
    return {
        "read_bytes": end.read_bytes - begin.read_bytes,
        "written_bytes": end.written_bytes - begin.written_bytes,
        "cpu_s": round(end.cpu_s - begin.cpu_s, 3),
        "energy_j": None if joules is None or joules < 0 else round(joules, 2),
    }


@dataclass
class MemoryWatch:
    """Samples a process's memory on a thread of its own until it is closed. ``samples``: (second, resident,
    anonymous)."""

    pid: int
    begin: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # the process has ended
            while not self._stop.is_set():
                found = memory(self.pid)
                self.samples.append((time.monotonic() - self.begin, found["resident"], found["anonymous"]))
                self._stop.wait(_EVERY_S)

    def close(self) -> dict[str, Any]:
        """Peak bytes, and some hundred of the samples."""
        self._stop.set()
        self._thread.join()
        step = max(1, len(self.samples) // 200)
        shown = self.samples[::step]
        return {
            "peak_resident": max((sample[1] for sample in self.samples), default=0),
            "peak_anonymous": max((sample[2] for sample in self.samples), default=0),
            "memory": [[round(t, 2), resident, anonymous] for t, resident, anonymous in shown],
        }
