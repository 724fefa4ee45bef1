"""Room for contexts and text: the anonymous contexts of an app make way, the one that was used least lately first.

Law: none goes that has a name, runs a call, or is kept for a caller. Everything is on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import reduce

from llmaas.errors import Busy, LlmaasError
from llmaas.records import AppId
from llmaas.service.live_context import LiveContext
from llmaas.service.parts import ServiceParts
from llmaas.service.quotas import Size

log = logging.getLogger(__name__)

CLAIM_S = 30.0
"""Seconds that a context is kept for a caller which was told of it."""
_GOING = 8
"""Contexts that are being deleted while the requests that made it necessary go on; beyond that they wait."""


class AnonymousContexts:
    """``most``: anonymous contexts that an app may keep; ``delete`` deletes a context."""

    def __init__(self, parts: ServiceParts, delete: Callable[[LiveContext], Awaitable[None]], most: int) -> None:
        self._directory, self._calls, self._quotas = parts.directory, parts.calls, parts.quotas
        self._clock, self._delete, self._most = parts.clock, delete, most
        self._going: dict[LiveContext, asyncio.Task[bool]] = {}
        self._coming = Counter[AppId]()
        """How many each app is about to get."""

    def claim(self, live: LiveContext) -> None:
        """Keep the context for a caller until its next call begins on it."""
        live.used = self._clock.now()
        live.claimed_until = live.used + CLAIM_S

    def free(self, contexts: Iterable[LiveContext]) -> list[LiveContext]:
        """Those that nobody uses, or is about to use."""
        now, called = self._clock.now(), {call.live for call in self._calls.values()}
        return [
            live
            for live in contexts
            if not live.lock.locked() and live.claimed_until <= now and live not in called and live not in self._going
        ]

    @asynccontextmanager
    async def room(self, app: AppId, keep: LiveContext | None = None) -> AsyncIterator[None]:
        """Around the making of an anonymous context: let the oldest go, if the app has as many as it may. Raises Busy.

        There is room within the app's quota then, too, if that is possible. ``keep`` goes only if no other may.
        """
        await self._make_room(app, keep)
        self._coming[app] += 1
        try:
            await self.fit_context(app, keep)
            yield
        finally:
            self._coming[app] -= 1
            if not self._coming[app]:
                del self._coming[app]

    async def _make_room(self, app: AppId, keep: LiveContext | None) -> None:
        while len(self._directory.anonymous(app)) + self._coming[app] - self._n_going(app) >= self._most:
            if (oldest := self._oldest(app, keep) or self._oldest(app, None)) is None:
                raise Busy(
                    f"all {self._most} anonymous contexts of the app {app} are in use",
                    hint="Try again when a request has ended, or raise the setting anonymous_contexts.",
                )
            self._let_go(oldest)
            if self._n_going(app) > _GOING and not await self._one_goes(app, keep):
                return  # the disk fails: it is said where something is written

    async def fit_context(self, app: AppId, keep: LiveContext | None = None) -> None:
        """Make room within the app's quota for another context, if that is possible."""
        while not self._quotas.fits_context(app):
            if not await self._one_goes(app, keep) and not await self._one_goes(app, None):
                return

    async def fit_text(self, app: AppId, more: Size, keep: LiveContext | None = None) -> None:
        """Make room within the app's quota for so much text, if that is possible; ``keep`` does not go."""
        while not self._quotas.fits_text(app, more):
            may_go = [*self._may_go(app, keep), *(live for live in self._going if live.row.app == app)]
            left = reduce(Size.less, map(self._quotas.counted, may_go), more)
            if not self._quotas.fits_text(app, left) or not await self._one_goes(app, keep):
                return

    async def wait_idle(self) -> None:
        """Return when nothing is being deleted."""
        while self._going:
            await asyncio.wait(list(self._going.values()))

    async def _one_goes(self, app: AppId, keep: LiveContext | None) -> bool:
        """Return when a context of the app is gone; False if none may go."""
        mine = (task for live, task in self._going.items() if live.row.app == app)
        if (task := next(mine, None)) is None:
            if (oldest := self._oldest(app, keep)) is None:
                return False
            task = self._let_go(oldest)
        await self._wait(task)
        return task.result()

    def _oldest(self, app: AppId, keep: LiveContext | None) -> LiveContext | None:
        return min(self._may_go(app, keep), key=lambda live: (live.used, live.last_used), default=None)

    def _may_go(self, app: AppId, keep: LiveContext | None) -> list[LiveContext]:
        return self.free(live for live in self._directory.anonymous(app) if live is not keep)

    def _n_going(self, app: AppId) -> int:
        return sum(live.row.app == app for live in self._going)

    def _let_go(self, live: LiveContext) -> asyncio.Task[bool]:
        task = self._going[live] = asyncio.get_running_loop().create_task(self._go(live))
        return task

    async def _go(self, live: LiveContext) -> bool:
        """Whether it is gone."""
        try:
            await self._delete(live)
        except LlmaasError as error:
            log.warning("anonymous context %s cannot be deleted: %s", live.id, error.message)
        finally:
            del self._going[live]
        return live.deleted

    async def _wait(self, task: asyncio.Task[bool]) -> None:
        """Whoever waits may be cancelled; the deletion goes on."""
        await asyncio.wait([task])
