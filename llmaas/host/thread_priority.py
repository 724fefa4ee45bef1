"""The priority of a single thread: workers in the background give way to the threads that somebody waits for.

Law: only lowers, and never fails: where the system has no priorities for threads, nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading

from llmaas.host.raw_calls import call_number

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "armv7l": 314, "riscv64": 30}
"""Number of the system call ioprio_set(2), which the C library does not wrap."""
_WHO_THREAD, _BEST_EFFORT = 1, 2
_NICENESS = 10


def lower_cpu_priority() -> None:
    """Lower this thread's CPU priority (Linux: niceness is per thread); one that is as low already stays as it is."""
    with contextlib.suppress(OSError, AttributeError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def lower_io_priority() -> None:
    """Lower this thread's I/O priority to the least of its class, where the kernel knows such a thing (Linux)."""
    number = call_number(_IOPRIO_SET)
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_THREAD, 0, _BEST_EFFORT << 13 | 7)
