"""Deletes contexts that were made with a time to live, when nobody has used them for that time.

Law: never too early, and never one that is in use. The time of the last use is the wall clock's, which is stored: a
clock that is set back makes contexts stay longer. One that is set forward counts only for contexts that have not been
used since the start; for the others the monotonic clock must agree. A context that is damaged stays, since it may be
repaired.

Where no context has a time to live, nothing runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

from llmaas.errors import LlmaasError, ShuttingDown
from llmaas.service.anonymous import AnonymousContexts
from llmaas.service.live_context import LiveContext
from llmaas.service.parts import ServiceParts

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 300.0
"""Seconds between two looks at the clocks, which may jump or stand still while the machine sleeps."""
IN_USE_S, FAILED_S = 1.0, 60.0
"""Seconds until a context is tried again that is due and in use, or that could not be deleted."""


class Expiry:
    """``watch`` each context that is there, and ``forget`` it when it is gone. For one event loop."""

    def __init__(
        self, parts: ServiceParts, anonymous: AnonymousContexts, delete: Callable[[LiveContext], Awaitable[None]]
    ) -> None:
        self._clock, self._anonymous, self._delete = parts.clock, anonymous, delete
        self._watched: dict[LiveContext, None] = {}
        self._changed = asyncio.Event()
        self._going: LiveContext | None = None
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def watch(self, live: LiveContext) -> None:
        if live.row.ttl is None:
            return
        self._watched[live] = None
        self._changed.set()
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def forget(self, live: LiveContext) -> None:
        self._watched.pop(live, None)

    async def wait_if_going(self, live: LiveContext) -> None:
        """Return when it is known whether the context goes, if it is being deleted."""
        if live is self._going:
            async with live.lock:
                pass

    async def close(self) -> None:
        """Return when no context is being deleted; none is from then on."""
        self._closed = True
        self._changed.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while not self._closed:
            self._changed.clear()
            failed = await self._delete_due()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), FAILED_S if failed else self._wait())

    def _wait(self) -> float | None:
        """Seconds until the next look; None if there is nothing to wait for."""
        lefts = [max(self._left(live), IN_USE_S) for live in self._watched if not live.damage]
        return min(min(lefts), LONGEST_WAIT_S) if lefts else None

    def _left(self, live: LiveContext) -> float:
        """Seconds until a context is due that nobody uses meanwhile."""
        assert live.row.ttl is not None
        left = live.last_used - self._clock.wall()
        if live.used > -math.inf:
            left = max(left, live.used - self._clock.now())
        return left + live.row.ttl

    def _is_due(self, live: LiveContext) -> bool:
        return not (live.damage or live.deleted or live.leaving) and self._left(live) <= 0

    async def _delete_due(self) -> bool:
        """Whether a context could not be deleted."""
        failed = False
        for live in self._anonymous.free(filter(self._is_due, list(self._watched))):
            # While others were deleted somebody may have come to use it.
            if self._closed or not self._is_due(live) or not self._anonymous.free([live]):
                continue
            self._going = live
            try:
                await self._delete(live)
            except ShuttingDown:
                return False
            except LlmaasError as error:
                failed = not live.deleted
                log.warning("context %s is due, and cannot be deleted: %s", live.id, error.message)
            else:
                log.info("context %s is deleted: nobody has used it for %g s", live.id, live.row.ttl)
            finally:
                self._going = None
        return failed
