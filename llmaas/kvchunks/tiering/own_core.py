"""Puts each thread of a load on a core of its own, for as long as the load lasts.

Law: it only helps. Where it cannot be done, threads run where the kernel puts them; afterwards they may run where they
might before.

The threads of a load often wait for the interpreter's lock, each time until another one gives it away. The kernel (6.18
with two cores) wakes a thread on the core of whoever woke it rather than search for an idle one, so both threads took
turns on one core, and the other slept. A thread whose core somebody else uses too takes fewer chunks than the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def own_core(number: int, n_threads: int) -> Iterator[None]:
    """Run the block, in thread ``number`` of ``n_threads``, on one core, if there are as many cores as threads. With
    more cores the kernel has a choice, and it knows which are quick and which are idle.
    """
    before = _cores()
    if len(before) != n_threads:
        yield
        return
    with suppress(OSError):  # cores may be taken away at any time
        os.sched_setaffinity(0, {before[number]})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


def _cores() -> list[int]:
    """Those that this thread may use; none where that is not told (outside Linux)."""
    try:
        return sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return []
