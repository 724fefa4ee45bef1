"""Looking from outside: how long methods take, what the page cache holds, what came from storage, how big a process is.

Law: a probe changes nothing that it measures but for a microsecond per call; Linux only.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np


class Stopwatch:
    """Notes when methods run, on any thread, while the ``with`` block lasts: ``Stopwatch(read=(Store, "get"))``."""

    def __init__(self, **methods: tuple[type, str]) -> None:
        self._methods = methods
        self.spans: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        self._saved: list[tuple[type, str, Any]] = []

    def total(self, name: str) -> float:
        """Milliseconds inside the method, summed over calls and threads."""
        return sum(end - begin for begin, end in self.spans[name]) * 1e3

    def wall(self, name: str) -> float:
        """Milliseconds from the first call's begin to the last one's end."""
        spans = self.spans[name]
        return (max(end for _, end in spans) - min(begin for begin, _ in spans)) * 1e3 if spans else 0.0

    def __enter__(self) -> Stopwatch:
        for name, (owner, attribute) in self._methods.items():
            plain = owner.__dict__[attribute]
            self._saved.append((owner, attribute, plain))
            setattr(owner, attribute, self._timed(plain, self.spans[name]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._saved:
            setattr(*self._saved.pop())

    @staticmethod
    def _timed(plain: Callable[..., Any], spans: list[tuple[float, float]]) -> Callable[..., Any]:
        @wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                spans.append((begin, perf_counter()))

        return timed


_libc = ctypes.CDLL(None, use_errno=True)


def resident_fraction(folder: Path) -> float:
    """The part of the pages of all files in ``folder`` that the page cache holds (mincore(2))."""
    held = pages = 0
    for path in folder.iterdir():
        size = path.stat().st_size
        if not size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
            address = np.frombuffer(view, np.uint8)
            found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            failed = _libc.mincore(
                ctypes.c_void_p(address.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data)
            )
            del address  # a mapping with views cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore", str(path))
        held += int((found & 1).sum())
        pages += found.size
    return held / pages if pages else 0.0


def storage_bytes_read() -> int:
    """Bytes that this process had fetched from storage so far (proc(5), /proc/pid/io, read_bytes)."""
    return _number(Path("/proc/self/io"), "read_bytes")


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process: resident now, of which anonymous and of files, and the most ever."""
    status = Path(f"/proc/{pid}/status")
    names = {"resident": "VmRSS", "anonymous": "RssAnon", "files": "RssFile", "peak": "VmHWM"}
    return {name: _number(status, field) * 1024 for name, field in names.items()}


def _number(path: Path, field: str) -> int:
    for line in path.read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise ValueError(f"{path} has no field {field}")
