"""The memory of the model's weights while nobody uses the model: given back, and brought back ahead of the next call.

Law: parking changes no answer and loses nothing: contexts stay where they are, and a call that comes too early reads
what it needs from the file itself. It never happens while a call waits or runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from llmaas.engine.thread import EngineThread
from llmaas.weights_tier import WeightsTier

log = logging.getLogger(__name__)

SHORT_IDLE_S = 10.0
"""While memory is short the model is parked after so many seconds without use, if that is less than ``keep_alive``."""


class WeightSource(Protocol):
    """Where the weights are read from. Its methods return at once."""

    def start(self) -> None:
        """Begin to read them into memory."""

    def left_s(self) -> float | None:
        """Seconds until they are there, as they are being read; None if they are not, or if it is not known."""

    def back_s(self) -> float | None:
        """Seconds until they would be there if reading began now; None if it is not known."""


class NoWeightFiles:
    """Of an engine whose weights are in no file."""

    def start(self) -> None:
        return None

    def left_s(self) -> float | None:
        return None

    def back_s(self) -> float | None:
        return None


class IdleWeights:
    """``keep_alive``: seconds without use after which the weights are parked; None: only while memory is short. Of one
    event loop."""

    def __init__(
        self,
        thread: EngineThread,
        keep_alive: float | None,
        in_use: Callable[[], bool],
        source: WeightSource | None = None,
    ) -> None:
        self._thread, self._keep_alive, self._in_use = thread, keep_alive, in_use
        self._source = source or NoWeightFiles()
        self._timer: asyncio.TimerHandle | None = None
        self._last_used = 0.0
        self._is_short = self._closed = False
        self.parked = False
        self.n_parked = 0

    def used(self) -> None:
        """A use begins, is announced, or has ended."""
        if self._closed:
            return
        if self.parked:
            self.parked = False
            self._source.start()
        self._last_used = asyncio.get_running_loop().time()
        if self._timer is None:
            self._arm()

    def on_memory(self, is_short: bool) -> None:
        """Whether the machine is short of memory."""
        if is_short and not self._is_short and not self._closed:
            self._is_short = True
            self._arm()
        self._is_short = is_short

    def close(self) -> None:
        """Park no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def tier(self) -> WeightsTier:
        """Where the weights are, as far as the service has seen to that."""
        used_in = self._thread.engine.weights_in
        return WeightsTier.DISK if self.parked and used_in is WeightsTier.PAGES else used_in

    def stats(self) -> dict[str, object]:
        """``back_s``: seconds until the weights are in memory, if they are not and that is known."""
        back_s = self._source.back_s() if self.parked else self._source.left_s()
        return {"tier": self.tier.value, "parked": self.parked, "times_parked": self.n_parked, "back_s": back_s}

    # -- inside

    def _idle_s(self) -> float | None:
        keep = self._keep_alive
        if self._is_short:
            return SHORT_IDLE_S if keep is None else min(SHORT_IDLE_S, keep)
        return keep

    def _arm(self) -> None:
        """Look again when the weights may be parked. One timer is enough for many uses: it looks how long ago the last
        one was."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        idle_s = self._idle_s()
        if idle_s is not None and not self.parked and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._last_used + idle_s), self._look)

    def _look(self) -> None:
        self._timer = None
        idle_s, now = self._idle_s(), asyncio.get_running_loop().time()
        if idle_s is None or self.parked:
            return
        if self._in_use():
            self._last_used = now
        if now - self._last_used >= idle_s and not self._in_use():
            self._park()
        else:
            self._timer = asyncio.get_running_loop().call_at(self._last_used + max(idle_s, 0.05), self._look)

    def _park(self) -> None:
        self.parked = True
        self.n_parked += 1
        self._thread.submit(self._thread.engine.park).add_done_callback(_parked)


def _parked(job: Future[int]) -> None:
    if job.cancelled():
        return
    if (error := job.exception()) is not None:
        log.warning("the model's memory cannot be given back: %s", error)
    else:
        log.info("nobody uses the model: %d MB of its weights are given back", job.result() >> 20)
