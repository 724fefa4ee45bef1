"""Python's own pauses, kept short while a process serves: the interpreter lock and the garbage collector.

Law: it changes how long threads wait for each other, and nothing else; afterwards all is as it was.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_S = 0.00025
"""Seconds for which a thread that runs Python may keep the others waiting for the lock.

The event loop gives the lock up at each system call, dozens of times until the first token of an answer, and each time
waits so long to get it back while another thread computes. While an app sent one large grammar after another, pings of
others took 170 ms at p99 with Python's default of 5 ms, and 50 ms with 0.5 ms. While an app sent conversations of 4,096
messages, the first tokens of others took 52 ms with 0.5 ms, 47 ms with this, and 41 ms when nobody did. With 0.1 ms
they took no less, and pings twice as long while 16 connections came and went: the loop is interrupted as often.
"""


@contextmanager
def short_pauses() -> Iterator[None]:
    """Keep the pauses short during the block; to be entered when everything is loaded.

    A full collection looks at all objects there are, with the lock held: 46 ms for the 60,000 that the daemon begins
    with, which live as long as it does anyway. They are left out.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
