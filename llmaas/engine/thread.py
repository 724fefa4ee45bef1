"""The one thread that owns the engine: jobs go in through a queue, futures come out.

Law: the engine is built, used and closed on this thread only. Every submitted job ends in exactly one of
result, exception or cancellation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from llmaas.engine.base import Engine, Halt
from llmaas.errors import ShuttingDown

T = TypeVar("T")
P = ParamSpec("P")
_Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class EngineThread:
    """A thread that owns an engine. The constructor waits for ``make`` and raises what it raises.

    It is not a ThreadPoolExecutor, which could not be made to build the engine first and close it last.
    """

    def __init__(self, make: Callable[[], Engine], name: str = "engine") -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._gate = threading.Lock()  # so that no job is put behind the None that ends the thread
        self._closed = False
        self._urgent_submitted = self._urgent_begun = 0
        self.halt = Halt()
        """Ends steps in a row (``Engine.steps``). Set by ``submit_urgent``, and by others that wait for their end."""
        made: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, made), name=name, daemon=True)
        self._thread.start()
        self._engine = made.result()

    @property
    def engine(self) -> Engine:
        """For the methods that are safe on any thread (``engine/base.py``)."""
        return self._engine

    @property
    def urgent_waiting(self) -> bool:
        """True while a job of ``submit_urgent`` has not begun."""
        return self._urgent_submitted != self._urgent_begun

    def submit_urgent(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit a job that somebody waits for: it ends steps in a row and shows in ``urgent_waiting``."""

        def begin() -> T:
            self._urgent_begun += 1
            return fn(*args, **kwargs)

        with self._gate:
            self._urgent_submitted += 1
        self.halt.set()
        return self.submit(begin)

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` on the thread, after all that was submitted before it. Raises ShuttingDown after ``close``."""
        future: Future[T] = Future()
        with self._gate:
            if self._closed:
                raise ShuttingDown("the engine is closing")
            self._jobs.put((future, fn, args, kwargs))
        return future

    def close(self) -> None:
        """Abort the running step, cancel waiting jobs, close the engine, wait for the end of the thread. Idempotent."""
        with self._gate:
            first, self._closed = not self._closed, True
        if first:
            self._jobs.put(None)
        if threading.current_thread() is self._thread:
            return
        while self._thread.is_alive():  # repeatedly: an abort just before a step begins has no effect
            self._engine.abort()
            self._thread.join(0.05)

    def leave(self) -> None:
        """Take no more jobs, cancel those that wait, and keep the engine: the process ends, and its memory with it."""
        with self._gate:
            self._closed = True

    def _run(self, make: Callable[[], Engine], made: Future[Engine]) -> None:
        try:
            engine = make()
        except BaseException as error:  # the constructor waits for it and raises it
            made.set_exception(error)
            return
        made.set_result(engine)
        del made
        try:
            while (job := self._jobs.get()) is not None:
                _carry_out(job, cancel=self._closed)
                del job  # otherwise its arguments would live until the next job comes
        finally:
            engine.close()


def _carry_out(job: _Job, *, cancel: bool) -> None:
    future, fn, args, kwargs = job
    if cancel:
        future.cancel()
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:  # the future raises it to whoever waits; the thread lives on
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        # An exception refers to this frame, the frame to the future, the future to the exception: such a ring would
        # keep a failed load's chunk in memory until the garbage collector runs.
        del future, job, fn, args, kwargs
