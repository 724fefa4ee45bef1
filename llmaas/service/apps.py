"""The apps that have a token: who may be which app.

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
from pathlib import Path
from typing import Protocol

from llmaas.api.app_token import TOKEN_BYTES, token_hash, token_of
from llmaas.clock import Clock
from llmaas.errors import AppExists, BadRequest, BadToken, Busy, LlmaasError, UnknownApp, UnknownContext
from llmaas.fair_thread import FairThread
from llmaas.records import AppId, AppInfo, ContextId, NewToken
from llmaas.service.app_file import AppRow, read_apps, write_apps

log = logging.getLogger(__name__)

MOST_APPS = 1024
"""Apps that can have a token."""


class AppContexts(Protocol):
    """The contexts of apps, as this module knows them."""

    def ids(self, app: AppId) -> list[ContextId]: ...

    async def delete(self, app: AppId, context: ContextId) -> None: ...


class Apps:
    """The table of apps. ``path`` is its file, written on ``thread``. For one event loop."""

    def __init__(self, path: Path, thread: FairThread, contexts: AppContexts, clock: Clock) -> None:
        self._path, self._thread, self._contexts, self._clock = path, thread, contexts, clock
        self._rows: dict[AppId, AppRow] = {}
        self._changing: AppId | None = None
        """Nobody becomes this app for now."""
        self._lock = asyncio.Lock()
        self._evict: Callable[[AppId, LlmaasError], Awaitable[bool]] = _nobody

    async def start(self) -> None:
        """Read the file. Raises AppsDamaged."""
        self._rows = {row.app: row for row in await self._thread.run("", read_apps, self._path)}

    # -- who is who

    def app_of(self, token: str) -> AppId | None:
        """The app that the token is of; None if it is no app's. How long this takes tells nothing of the tokens. Raises
        Busy while the app loses its token."""
        given, found = token_hash(token), None
        for row in self._rows.values():
            if hmac.compare_digest(row.token_hash, given):
                found = row.app
        if found is not None:
            self._refuse_change(found)
        return found

    def refuse_without(self, app: AppId) -> None:
        """Raises BadToken if the app has a token; Busy while it is given one, or loses it."""
        if app in self._rows:
            raise BadToken(f"the app {app} has a token, and the connection has not given it")
        self._refuse_change(app)

    def _refuse_change(self, app: AppId) -> None:
        if app == self._changing:
            raise Busy(f"the app {app} is being given a token, or loses it", hint="Try again in a moment.")

    def infos(self) -> list[AppInfo]:
        """All apps that have a token, by name."""
        return [AppInfo(app, row.created, len(self._contexts.ids(app))) for app, row in sorted(self._rows.items())]

    # -- what the operator does

    def on_evict(self, evict: Callable[[AppId, LlmaasError], Awaitable[bool]]) -> None:
        """``evict`` ends what an app has connected, and waits for what it has under way; False: it takes too long."""
        self._evict = evict

    async def add(self, app: AppId, *, contexts: str) -> NewToken:
        """Give the app a token, and end what has connected as that app without one. ``contexts``: ``refuse``, ``keep``
        or ``delete`` those that it has already. Raises AppExists, BadRequest, Busy, StoreFailed."""
        async with self._lock:
            if app in self._rows:
                raise AppExists(f"the app {app} has a token already")
            if len(self._rows) >= MOST_APPS:
                raise BadRequest(f"{MOST_APPS} apps have a token already", hint="Forget some ('llmaas app rm').")
            async with self._vacated(app, contexts, "any program of its user may have made them"):
                made, row = self._made(app)
                await self._write({**self._rows, app: row})
            return made

    async def remove(self, app: AppId, *, contexts: str) -> None:
        """Forget the app's token: whoever says its name is that app again. Raises UnknownApp, BadRequest, Busy,
        StoreFailed."""
        async with self._lock:
            self._row(app)
            async with self._vacated(app, contexts, "any program of its user could read them then"):
                await self._write({name: row for name, row in self._rows.items() if name != app})

    async def rotate(self, app: AppId) -> NewToken:
        """Give the app another token, and end what has connected with the one before. Raises UnknownApp,
        StoreFailed."""
        async with self._lock:
            self._row(app)
            made, row = self._made(app)
            await self._write({**self._rows, app: row})
            await self._evict(app, BadToken(f"the app {app} has another token now"))
            return made

    # -- inside

    def _row(self, app: AppId) -> AppRow:
        if (row := self._rows.get(app)) is None:
            raise UnknownApp(f"the app {app} has no token")
        return row

    def _made(self, app: AppId) -> tuple[NewToken, AppRow]:
        token = token_of(secrets.token_bytes(TOKEN_BYTES))
        return NewToken(app, token), AppRow(app, token_hash(token), self._clock.wall())

    async def _write(self, rows: dict[AppId, AppRow]) -> None:
        await self._thread.run("", write_apps, self._path, list(rows.values()))
        self._rows = rows

    @asynccontextmanager
    async def _vacated(self, app: AppId, contexts: str, why: str) -> AsyncIterator[None]:
        """During the block nobody is the app, nothing of it is under way, and what it has kept is dealt with."""
        self._refuse_contexts(app, contexts, why)  # before anything is ended
        self._changing = app
        try:
            if not await self._evict(app, BadToken(f"the app {app} is given a token, or loses it")):
                raise Busy(f"requests of the app {app} still run", hint="Try again when they have ended.")
            self._refuse_contexts(app, contexts, why)
            for context in self._contexts.ids(app) if contexts == "delete" else ():
                with suppress(UnknownContext):  # an anonymous one may go by itself
                    await self._contexts.delete(app, context)
            yield
        finally:
            self._changing = None

    def _refuse_contexts(self, app: AppId, contexts: str, why: str) -> None:
        n = len(self._contexts.ids(app))
        if n and contexts == "refuse":
            raise BadRequest(
                f"the app {app} has {n} contexts: {why}",
                hint="Say what becomes of them: --keep-contexts or --delete-contexts.",
            )


async def _nobody(app: AppId, error: LlmaasError) -> bool:
    """Nothing is connected yet."""
    return True
