"""The apps that have a token or quotas of their own: who may be which app, and what it may have.

Law: an app with a token is nobody's without it. A change is on disk before it holds in memory, and no connection from
before it is left when its reply leaves. No token is kept, logged or told twice.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from llmaas.api.app_token import TOKEN_BYTES, token_hash, token_of
from llmaas.clock import Clock
from llmaas.errors import AppExists, BadRequest, BadToken, Busy, LlmaasError, UnknownApp, UnknownContext
from llmaas.fair_thread import FairThread
from llmaas.records import AppId, AppInfo, AppQuota, AppUse, ContextId, NewToken
from llmaas.service.app_file import AppRow, read_apps, write_apps

log = logging.getLogger(__name__)

MOST_APPS = 1024
"""Apps that can have a token, or quotas."""


class AppService(Protocol):
    """What is done for apps, as this module knows it."""

    def ids(self, app: AppId) -> list[ContextId]:
        """The ids of the app's contexts."""

    async def delete(self, app: AppId, context: ContextId) -> None: ...

    def used(self, app: AppId) -> AppUse: ...

    def set_quota(self, app: AppId, quota: AppQuota) -> None: ...


class Apps:
    """The table of apps. ``path`` is its file, written on ``thread``. For one event loop."""

    def __init__(self, path: Path, thread: FairThread, service: AppService, clock: Clock) -> None:
        self._path, self._thread, self._service, self._clock = path, thread, service, clock
        self._rows: dict[AppId, AppRow] = {}
        self._changing: AppId | None = None
        """Nobody becomes this app for now."""
        self._lock = asyncio.Lock()
        self.on_changed: Callable[[], Awaitable[None]] = _nothing
        """Awaited after each change of the file, before anybody is told of it."""
        self._evict: Callable[[AppId, LlmaasError], Awaitable[bool]] = _nobody

    async def start(self) -> None:
        """Read the file. Raises AppsDamaged."""
        self._rows = {row.app: row for row in await self._thread.run("", read_apps, self._path)}

    def apply_quotas(self) -> None:
        """Let the service know all quotas. To be called once, when it can take them."""
        for row in self._rows.values():
            self._service.set_quota(row.app, row.quota)

    # -- who is who

    def app_of(self, token: str) -> AppId | None:
        """The app that the token is of; None if it is no app's. How long this takes tells nothing of the tokens. Raises
        Busy while the app loses its token."""
        given, found = token_hash(token), None
        for row in self._rows.values():
            if row.token_hash is not None and hmac.compare_digest(row.token_hash, given):
                found = row.app
        if found is not None:
            self._refuse_change(found)
        return found

    def refuse_without(self, app: AppId) -> None:
        """Raises BadToken if the app has a token; Busy while it is given one, or loses it."""
        if self._has_token(app):
            raise BadToken(f"the app {app} has a token, and the connection has not given it")
        self._refuse_change(app)

    def _refuse_change(self, app: AppId) -> None:
        if app == self._changing:
            raise Busy(f"the app {app} is being given a token, or loses it", hint="Try again in a moment.")

    def infos(self) -> list[AppInfo]:
        """All apps that have a token or quotas of their own, by name."""
        return [self._info(row) for _, row in sorted(self._rows.items())]

    def most_urgent(self, app: AppId) -> int | None:
        """The most urgent priority that the app's own quota allows; None: it does not say."""
        row = self._rows.get(app)
        return row.quota.priority if row is not None else None

    # -- what the operator does

    def on_evict(self, evict: Callable[[AppId, LlmaasError], Awaitable[bool]]) -> None:
        """``evict`` ends what an app has connected, and waits for what it has under way; False: it takes too long."""
        self._evict = evict

    async def add(self, app: AppId, *, contexts: str, quota: AppQuota | None = None) -> NewToken:
        """Give the app a token, and end what has connected as that app without one. ``contexts``: ``refuse``, ``keep``
        or ``delete`` those that it has already. Raises AppExists, BadRequest, Busy, StoreFailed."""
        async with self._lock:
            if self._has_token(app):
                raise AppExists(f"the app {app} has a token already")
            self._refuse_many(app)
            async with self._vacated(app, contexts, "any program of its user may have made them"):
                made, row = self._made(app)
                await self._write(row if quota is None else replace(row, quota=quota))
            log.info("the app %s has a token now", app)
            return made

    async def remove(self, app: AppId, *, contexts: str) -> None:
        """Forget the app's token: whoever says its name is that app again. Raises UnknownApp, BadRequest, Busy,
        StoreFailed."""
        async with self._lock:
            if app in self._rows and not self._has_token(app):  # it has quotas only
                await self._write(AppRow(app))
                return
            self._refuse_unknown(app)
            async with self._vacated(app, contexts, "any program of its user could read them then"):
                await self._write(AppRow(app))
            log.info("the app %s has no token any more", app)

    async def rotate(self, app: AppId) -> NewToken:
        """Give the app another token, and end what has connected with the one before. Raises UnknownApp,
        StoreFailed."""
        async with self._lock:
            self._refuse_unknown(app)
            made, row = self._made(app)
            await self._write(row)
            await self._evict(app, BadToken(f"the app {app} has another token now"))
            log.info("the app %s has another token now", app)
            return made

    async def set_quota(self, app: AppId, quota: AppQuota) -> AppInfo:
        """Give an app quotas of its own, with or without a token. Raises BadRequest, StoreFailed."""
        async with self._lock:
            self._refuse_many(app)
            row = replace(self._rows.get(app, AppRow(app)), quota=quota)
            await self._write(row)
            log.info("the app %s may have: %s", app, quota)
            return self._info(row)

    # -- inside

    def _has_token(self, app: AppId) -> bool:
        return app in self._rows and self._rows[app].token_hash is not None

    def _refuse_unknown(self, app: AppId) -> None:
        if not self._has_token(app):
            raise UnknownApp(f"the app {app} has no token")

    def _refuse_many(self, app: AppId) -> None:
        if app not in self._rows and len(self._rows) >= MOST_APPS:
            raise BadRequest(f"{MOST_APPS} apps are known already", hint="Forget some ('llmaas app rm').")

    def _info(self, row: AppRow) -> AppInfo:
        return AppInfo(row.app, row.created, row.quota, self._service.used(row.app))

    def _made(self, app: AppId) -> tuple[NewToken, AppRow]:
        """A new token, and the app's row with it."""
        token, row = token_of(secrets.token_bytes(TOKEN_BYTES)), self._rows.get(app, AppRow(app))
        return NewToken(app, token), replace(row, token_hash=token_hash(token), created=self._clock.wall())

    async def _write(self, row: AppRow) -> None:
        """Put the row in the place of the app's. One that says nothing is left out."""
        rows = {**self._rows, row.app: row}
        if row == AppRow(row.app):
            del rows[row.app]
        await self._thread.run("", write_apps, self._path, list(rows.values()))
        self._rows = rows
        self._service.set_quota(row.app, row.quota)
        await self.on_changed()

    @asynccontextmanager
    async def _vacated(self, app: AppId, contexts: str, why: str) -> AsyncIterator[None]:
        """During the block nobody is the app, nothing of it is under way, and what it has kept is dealt with."""
        self._refuse_contexts(app, contexts, why)  # before anything is ended
        self._changing = app
        try:
            if not await self._evict(app, BadToken(f"the app {app} is given a token, or loses it")):
                raise Busy(f"requests of the app {app} still run", hint="Try again when they have ended.")
            self._refuse_contexts(app, contexts, why)
            for context in self._service.ids(app) if contexts == "delete" else ():
                with suppress(UnknownContext):  # an anonymous one may go by itself
                    await self._service.delete(app, context)
            yield
        finally:
            self._changing = None

    def _refuse_contexts(self, app: AppId, contexts: str, why: str) -> None:
        n = len(self._service.ids(app))
        if n and contexts == "refuse":
            raise BadRequest(
                f"the app {app} has {n} contexts: {why}",
                hint="Say what becomes of them: --keep-contexts or --delete-contexts.",
            )


async def _nothing() -> None:
    """Nobody else has the file."""


async def _nobody(app: AppId, error: LlmaasError) -> bool:
    """Nothing is connected yet."""
    return True
