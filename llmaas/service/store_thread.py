"""The thread on which the service reads and writes the store's index.

Law: one job after another, in the order given, off the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class StoreThread:
    """Runs jobs on a thread of its own. For one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "store")

    async def run(self, do: Callable[..., T], *args: object) -> T:
        """``do(*args)`` on the thread; raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *args)

    def close(self) -> None:
        self._thread.shutdown()
