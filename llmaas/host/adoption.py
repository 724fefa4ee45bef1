"""Children of a process that ends become children of this one, so that it can wait for them.

Law: only for as long as this process wants some: orphans that it does not know would stay as zombies.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llmaas.host.raw_calls import on_android

_PR_SET_CHILD_SUBREAPER = 36
"""sys/prctl.h"""


def can_adopt() -> bool:
    """Whether this system knows such a thing, and tells when one of them has ended (Linux 5.3)."""
    if sys.platform != "linux" or on_android() or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


@contextmanager
def adopting() -> Iterator[None]:
    """During the block. Where the system refuses, it is the first process of the system that gets them."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
