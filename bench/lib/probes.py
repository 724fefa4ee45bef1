"""What the kernel knows of page cache, storage, memory and processor time; Linux only."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def resident_fraction(folder: Path) -> float:
    """The part of the pages of all files in ``folder`` that the page cache holds (mincore(2)), 0 to 1."""
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


def forget(path: Path) -> None:
    """Have the file on the disk, and nothing of it in the page cache, unless a program maps it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def storage_bytes_read() -> int:
    """Bytes that this process had fetched from storage so far (proc(5), /proc/pid/io, read_bytes)."""
    return _number(Path("/proc/self/io"), "read_bytes")


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process: resident now, of which anonymous and of files, and the most that were ever resident."""
    status = Path(f"/proc/{pid}/status")
    names = {"resident": "VmRSS", "anonymous": "RssAnon", "files": "RssFile", "peak": "VmHWM"}
    return {name: _number(status, field) * 1024 for name, field in names.items()}


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    return time.clock_gettime(~pid << 3 | 2)  # its CPU clock, as clock_getcpuclockid(3) makes it on Linux


def _number(path: Path, field: str) -> int:
    for line in path.read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise ValueError(f"{path} has no field {field}")
