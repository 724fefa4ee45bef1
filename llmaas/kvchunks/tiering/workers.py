"""Worker threads that all begin at once.

Law: what is submitted either ends in one of result, exception or cancellation, or ``submit`` raises and it never runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Workers(ThreadPoolExecutor):
    """An executor of ``n`` threads, each of which calls ``begin`` first. Raises RuntimeError if one cannot be started.

    Python's own starts a thread when a job comes that no idle one takes. If the system has none left (ENOMEM, a limit
    on threads) it raises after it has queued the job, which may run all the same. Here a process that cannot have its
    threads fails at its start.
    """

    def __init__(self, n: int, name: str, begin: Callable[[], None] = lambda: None) -> None:
        super().__init__(n, name, begin)
        all_there = threading.Barrier(n + 1)
        try:
            for _ in range(n):
                self.submit(all_there.wait)  # nobody is idle until all are there, so each takes a thread of its own
        except BaseException:
            all_there.abort()
            self.shutdown(wait=True)
            raise
        all_there.wait()
