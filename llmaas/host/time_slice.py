"""How long a thread runs at a time: the slice that it asks the kernel for.

Law: never fails, and changes no share of the CPU: where the kernel has no such thing, nothing happens.

Since 6.12 Linux lets a thread of the fair class ask for slices of its own (sched_setattr(2), ``sched_runtime``). A
thread with short slices gets no more time, but gets it sooner: when it wakes up beside a process that computes, it need
not wait for the end of that one's slice, milliseconds away. The engine's threads wait for each other hundreds of times
in a step, and the daemon's other threads work for microseconds at a time. A thread that computes a step alone waits
for nobody: it keeps its core for longer with the kernel's own slices, and what it has in the core's caches.
"""

from __future__ import annotations

import ctypes

from llmaas.host.raw_calls import call_number

_GET = {"x86_64": 315, "aarch64": 275, "armv7l": 381, "riscv64": 275}
_SET = {"x86_64": 314, "aarch64": 274, "armv7l": 380, "riscv64": 274}
"""Numbers of the system calls sched_getattr(2) and sched_setattr(2), which not every C library wraps."""
_OTHER, _BATCH = 0, 3
"""The policies of the fair class."""
SLICE_NS = 100_000
"""The shortest that the kernel grants. By itself it gives some milliseconds."""


class _Attributes(ctypes.Structure):
    """``struct sched_attr``, in its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def slice_ns() -> int | None:
    """The slice of this thread, in nanoseconds; None where the kernel does not say."""
    found = _attributes()
    return None if found is None else int(found.runtime)


def shorten_slices(nanoseconds: int = SLICE_NS) -> None:
    """Ask for shorter slices for this thread, and for those that it will start."""
    found = _attributes()
    if found is not None:
        _set(found, nanoseconds)


class StepSlices:
    """The slices of a thread that computes steps, alone or with others. Call it on that thread, before a step.

    A thread that never asked for short slices keeps those that it has.
    """

    def __init__(self) -> None:
        self._lengthened = False

    def __call__(self, n_threads: int) -> None:
        """The next steps have so many threads."""
        alone = n_threads == 1
        found = _attributes()
        if found is None or alone == self._lengthened or (alone and found.runtime != SLICE_NS):
            return
        _set(found, 0 if alone else SLICE_NS)
        self._lengthened = alone


def _set(attributes: _Attributes, nanoseconds: int) -> None:
    """0: the kernel's own."""
    number = call_number(_SET)
    if number is not None and attributes.policy in (_OTHER, _BATCH):
        attributes.runtime = nanoseconds
        ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), 0)


def _attributes() -> _Attributes | None:
    """What the kernel knows of this thread."""
    number = call_number(_GET)
    if number is None:
        return None
    found = _Attributes()
    size = ctypes.sizeof(found)
    if ctypes.CDLL(None).syscall(number, 0, ctypes.byref(found), size, 0):
        return None
    found.size = size
    return found
