"""How long llama.cpp's threads spin while they wait for each other, if it was built with GNU OpenMP.

Law: the engine's thread only, except ``loading``. Where there is another runtime, or none, nothing happens.

GNU OpenMP has two numbers of spins: one for when it has a CPU for each of its threads, and one, far smaller, for when
it has more threads than CPUs (libgomp's manual, GOMP_SPINCOUNT). Both are read when the library is loaded. A decode
step needs the large one: its threads meet every few microseconds, and to fall asleep and wake up takes longer than
that. A step of many tokens computes for hundreds of microseconds between two meetings: sleeping costs nearly nothing
there, while spinning for a thread that waits for its core takes milliseconds each time. So during such steps, and only
then, there are more threads than CPUs: a team that does nothing. Not where each thread is known to have a CPU to
itself: even there, falling asleep and waking up takes a twentieth of a prefill.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

MANY_TOKENS = 32
"""Steps of at least so many tokens compute long enough between two meetings."""
_VARIABLES = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}
"""The spins that GNU OpenMP has by itself; the policy, that the smaller number is 1000 instead of 100."""
_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
"""GOMP_parallel: each thread of a team of so many calls a function with a pointer."""


@contextmanager
def loading(environ: MutableMapping[str, str]) -> Iterator[None]:
    """The library is loaded in the block. Who has set a variable of it themselves is left alone."""
    mine = {} if any(name in environ for name in _VARIABLES) else _VARIABLES
    environ.update(mine)
    try:
        yield
    finally:
        for name in mine:  # they are meant for no process that this one starts
            del environ[name]


class SpinControl:
    """Lets the threads of ``n_threads`` at most spin for long, or not.

    ``parallel``: the address of the library's GOMP_parallel; None if llama.cpp is built without it. ``n_cpus``: the
    CPUs that the library found when it was loaded.
    """

    def __init__(self, parallel: int | None, n_cpus: int) -> None:
        self._parallel = Parallel(parallel) if parallel is not None else None
        self._n_cpus = n_cpus
        self._n_threads = 0
        """Threads of the steps for which the team is there; 0: there is none."""
        self._ended = threading.Event()
        self.always_long = False
        """Whether threads spin for long in steps of many tokens, too. It may be written between steps."""

    @property
    def short(self) -> bool:
        """Whether threads spin for a short time only."""
        return self._n_threads > 0

    def before_step(self, n_tokens: int, n_threads: int) -> None:
        """A step of so many tokens begins, on so many threads. One thread waits for no other."""
        wanted = n_threads if n_tokens >= MANY_TOKENS and not self.always_long else 0
        if n_threads == 1 or wanted == self._n_threads or self._parallel is None:
            return
        self.close()
        if wanted:
            self._begin(self._parallel, wanted)

    def close(self) -> None:
        """Threads spin for long again, soon."""
        self._ended.set()
        self._n_threads = 0

    def _begin(self, parallel: ctypes._FuncPointer, n_threads: int) -> None:
        """Make a team so large that there is a thread more than there are CPUs. It sleeps until its maker ends."""
        ended, begun = threading.Event(), threading.Event()
        n_idle = max(2, self._n_cpus - n_threads + 2)  # its maker is among them, and has been counted

        def run() -> None:
            parallel(_nothing, None, n_idle, 0)
            begun.set()
            ended.wait()

        try:
            threading.Thread(target=run, name="idle-team", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            return
        begun.wait()
        self._ended, self._n_threads = ended, n_threads


_nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
"""A C function that does nothing when it gets NULL: the threads of the team never enter Python."""


def n_cpus() -> int:
    """The CPUs that the library finds when it is loaded on this thread."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
