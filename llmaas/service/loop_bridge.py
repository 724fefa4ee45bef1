"""The way from the engine's thread to the event loop.

Law: what is sent first is called first; sending never waits for the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class LoopBridge:
    """A thread that brings calls from the engine's thread to the event loop, in order.

    ``call_soon_threadsafe`` writes to a pipe and so gives up the GIL, which the woken loop then holds while the engine
    waits to begin its next step: 0.1 ms per token. The bridge writes while that step runs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sent: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="loop-bridge", daemon=True)
        self._thread.start()

    def send(self, call: Callable[..., None], *args: object) -> None:
        """Have the loop call ``call(*args)``, soon. From any thread."""
        self._sent.put((call, args))

    def close(self) -> None:
        """Return when all that was sent has been handed to the loop."""
        self._sent.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (sent := self._sent.get()) is not None:
            self._loop.call_soon_threadsafe(sent[0], *sent[1])
