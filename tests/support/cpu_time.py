"""A bound on the CPU time of a piece of code, which the tests that ran before it do not use up.

It is the time of this thread alone, so that other programs do not count. What the suite keeps in memory is set aside
meanwhile: a collection of Python's garbage would walk through all of it, for half a second at the end of the suite.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def suite_set_aside() -> Iterator[None]:
    """Python's collector leaves what exists now alone, for as long as the body runs."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """The body takes less than ``seconds`` of this thread's CPU time."""
    with suite_set_aside():
        begun = time.thread_time()
        yield
        taken = time.thread_time() - begun
    assert taken < seconds
