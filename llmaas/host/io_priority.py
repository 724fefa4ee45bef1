"""How urgent what a thread reads from the disk is, beside what others read.

Law: never fails: where the kernel or its I/O scheduler has no such thing, nothing happens.

Linux's mq-deadline and BFQ serve requests of a higher level first (ioprio_set(2)); "none" and kyber know no levels.
Rejected: the idle class, which gets nothing while anybody else reads: whoever waits for the model might wait for ever.
"""

from __future__ import annotations

import ctypes

from llmaas.host.raw_calls import call_number

_GET = {"x86_64": 252, "aarch64": 31, "armv7l": 315, "riscv64": 31}
_SET = {"x86_64": 251, "aarch64": 30, "armv7l": 314, "riscv64": 30}
"""Numbers of the system calls ioprio_get(2) and ioprio_set(2), which C libraries do not wrap."""
_THREAD, _BEST_EFFORT, _SHIFT = 1, 2, 13
LOWEST = 7
"""Of the levels of the best-effort class, in which all threads are; 4 is the usual one."""


def io_level() -> int | None:
    """The level of this thread in the best-effort class; None if it has none of its own, or the kernel does not say."""
    number = call_number(_GET)
    found = -1 if number is None else ctypes.CDLL(None).syscall(number, _THREAD, 0)
    return found & ((1 << _SHIFT) - 1) if found >= 0 and found >> _SHIFT == _BEST_EFFORT else None


def lower_io_priority(level: int = LOWEST) -> None:
    """Let what this thread reads, and those that it will start, come after what others read."""
    number = call_number(_SET)
    if number is not None:
        ctypes.CDLL(None).syscall(number, _THREAD, 0, _BEST_EFFORT << _SHIFT | level)
