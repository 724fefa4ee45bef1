"""Takes from an iterator on a thread of its own, a few items ahead of whoever uses them.

Law: a daemon that is asked and a file that is written work at the same time; never more than a few items are held. When
the block ends, so has the thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

_ITEMS = 4
_END = object()


@contextmanager
def ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """The items, in order. What their iterator raises is raised where its item would have come."""
    taker = _Taker(items)
    try:
        yield iter(taker)
    finally:
        taker.close()


class _Taker(Generic[T]):
    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._queue: queue.Queue[object] = queue.Queue(_ITEMS)
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not _END:
            yield item  # type: ignore[misc]  # the queue holds items of ``_items``
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)  # let it go on to where it sees that nobody wants more
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if self._stop.is_set():
                    break
                self._queue.put(item)
        except BaseException as error:
            self._error = error
        self._queue.put(_END)
