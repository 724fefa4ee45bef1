"""The name under which tools such as ps and top show this process.

Law: where the system knows no such thing, nothing happens.
"""

from __future__ import annotations

import ctypes

_PR_SET_NAME = 15
"""sys/prctl.h"""
MOST_BYTES = 15


def set_process_name(name: str) -> None:
    """Of the thread that calls, which is the process's if it is the first one; and of threads that it starts later."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_NAME, name.encode()[:MOST_BYTES], 0, 0, 0)
