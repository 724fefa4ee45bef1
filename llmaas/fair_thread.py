"""One thread that does jobs of many owners in turn, so that no owner's jobs wait for all of another's.

Law: jobs of one owner are done in the order given; among owners who have jobs, each gets one done before any gets a
second. Every job ends in exactly one of result, exception or ShuttingDown.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from llmaas.clock import thread_cpu
from llmaas.errors import ShuttingDown
from llmaas.fair_queue import FairQueue

T = TypeVar("T")
_Job = tuple[str, "Future[Any]", Callable[..., Any], tuple[Any, ...]]

MOST_REST_S = 0.1
"""Seconds that one rest takes at most."""


class FairThread:
    """A thread of its own, which begins with this object: a process that can start no thread fails here, not later.

    ``rest``: while jobs wait, the thread rests after each for so many times the CPU time that it took. For jobs that
    hold the interpreter lock: without rests other threads, such as the event loop's, had to wait for it each time. No
    owner's first job waits for a rest. ``time``: in place of the thread's CPU time, for jobs that other threads do.
    """

    def __init__(self, name: str, rest: float = 0.0, time: Callable[[], float] = thread_cpu) -> None:
        self._rest, self._time = rest, time
        self._jobs = FairQueue[_Job]()
        self._changed = threading.Condition()
        self._newcomers = set[str]()
        """Owners who had no job when theirs came, which has not begun yet."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, owner: str, do: Callable[..., T], *args: object) -> T:
        """``do(*args)`` on the thread; raises what it raises, or ShuttingDown after ``close``.

        If the caller is cancelled before the job has begun, the job is not done.
        """
        return await asyncio.wrap_future(self.submit(owner, do, *args))

    async def run_to_end(self, owner: str, do: Callable[..., T], *args: object) -> T:
        """As ``run``, for a job that reads or changes what the caller's lock guards: a caller that is cancelled while
        the job is done waits for its end, with the lock.
        """
        job = self.submit(owner, do, *args)
        waiting = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not job.cancel():
                await _ended(waiting)
            raise

    def submit(self, owner: str, do: Callable[..., T], *args: object) -> Future[T]:
        """As ``run``, without waiting. From any thread."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise ShuttingDown("the daemon is stopping")
            if owner not in self._jobs:
                self._newcomers.add(owner)
            self._jobs.add(owner, (owner, future, do, args))
            self._changed.notify()
        return future

    def close(self, *, finish: bool = True, wait: bool = True) -> None:
        """Take no more jobs, and return when the thread has ended. ``finish``: whether waiting jobs are still done.

        Without ``wait`` it returns at once; what the thread does then ends with the process.
        """
        with self._changed:
            self._closed = True
            dropped = [] if finish else self._jobs.take_all()
            self._changed.notify()
        for _, future, _, _ in dropped:
            if future.set_running_or_notify_cancel():
                future.set_exception(ShuttingDown("the daemon is stopping"))
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            begun = self._time()
            _carry_out(job)
            del job  # otherwise its arguments would live until the next job comes
            if self._rest:
                self._rest_for(min(MOST_REST_S, self._rest * (self._time() - begun)))

    def _rest_for(self, seconds: float) -> None:
        with self._changed:
            if self._jobs:
                self._changed.wait_for(lambda: self._closed or self._newcomers, seconds)

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            job = self._jobs.pop()
            self._newcomers.discard(job[0])
            return job


async def _ended(waiting: asyncio.Future[Any]) -> None:
    while not waiting.done():
        with contextlib.suppress(asyncio.CancelledError):  # the caller knows that it is cancelled
            await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.exception()  # nobody else asks for it, and asyncio would log that


def _carry_out(job: _Job) -> None:
    _, future, do, args = job
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = do(*args)
    except BaseException as error:  # the future raises it to whoever waits; the thread lives on
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        del future, job, do, args  # an exception refers to this frame, and the frame would keep the arguments
