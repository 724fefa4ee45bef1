"""A process that computes only what no other wants to: the CPUs and the memory are the others' first.

Law: it imports nothing but the standard library's small modules, so that a process can give way before it does more.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def give_way() -> None:
    """For this process from now on. Where the system does not allow a part of it, that part is left out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which ends this process
    with contextlib.suppress(OSError):
        os.nice(19)
    if hasattr(os, "sched_setscheduler"):  # a niceness of 19 still takes slices from cores that wait for each other
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
