"""Connections to the daemon: one for each app that uses HTTP, made when it is needed.

Law: there are at most ``MOST_APPS``; one that nobody uses is closed after ``IDLE_S``, and one that was lost is made
anew. Requests of one app share its connection, as the daemon allows. A token that the daemon has not taken yet has no
place among them: whoever sends many wrong ones keeps nobody else out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llmaas.api.async_client import AsyncClient
from llmaas.errors import BadToken, Busy, LlmaasError, ShuttingDown
from llmaas.http.identity import Identity

MOST_APPS = 64
IDLE_S = 60.0
_CONNECT_S = 5.0
_UNPROVEN = 8
"""Connections at once with tokens that the daemon has not taken yet."""


@dataclass(slots=True)
class _Place:
    """The connection of one app, and how many requests use it."""

    client: AsyncClient | None = None
    users: int = 0
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    idle: asyncio.TimerHandle | None = None


class Connections:
    """Gives each request the connection of its app, to ``model``, or the one that the daemon has by default."""

    def __init__(
        self, socket: Path, daemon_uid: int | None = None, *, model: str | None = None, connect_s: float = _CONNECT_S
    ) -> None:
        self._socket, self._daemon_uid, self._model, self._connect_s = socket, daemon_uid, model, connect_s
        self._places: dict[Identity, _Place] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._unproven = asyncio.Semaphore(_UNPROVEN)

    async def prove(self, app: Identity) -> None:
        """Return when the daemon has taken the app's token. Raises BadToken, or LlmaasError if no daemon answers."""
        if app in self._places:
            async with self.of(app):
                return
        async with self._unproven:
            if app in self._places:  # another request has done it meanwhile
                return
            client = await self._connect(app)
            try:
                place = self._place(app)
            except LlmaasError:
                await client.close()
                raise
            if place.client is not None:
                await client.close()
                return
            place.client = client
            self._leave_idle(app, place)

    @asynccontextmanager
    async def of(self, app: Identity) -> AsyncIterator[AsyncClient]:
        """The app's connection, for as long as a request uses it. Raises LlmaasError if there is none to be had."""
        place = self._place(app)
        place.users += 1
        if place.idle is not None:
            place.idle.cancel()
            place.idle = None
        try:
            try:
                client = await self._connected(app, place)
            except BadToken:  # it is none any more
                self._drop(app)
                raise
            yield client
        finally:
            place.users -= 1
            if not place.users and self._places.get(app) is place:
                self._leave_idle(app, place)

    def _leave_idle(self, app: Identity, place: _Place) -> None:
        place.idle = asyncio.get_running_loop().call_later(IDLE_S, self._drop, app)

    async def close(self) -> None:
        """Close all; what runs on them fails."""
        self._closed = True
        for app in list(self._places):
            self._drop(app)
        await asyncio.gather(*self._closing)

    def _place(self, app: Identity) -> _Place:
        if self._closed:
            raise ShuttingDown("the HTTP server is stopping")
        if app not in self._places and len(self._places) >= MOST_APPS:
            idle = next((name for name, place in self._places.items() if not place.users), None)
            if idle is None:
                raise Busy(f"{MOST_APPS} apps use this server already")
            self._drop(idle)
        place = self._places.pop(app, None) or _Place()
        self._places[app] = place  # the last one that was used comes last
        return place

    async def _connected(self, app: Identity, place: _Place) -> AsyncClient:
        async with place.connecting:
            if place.client is not None and not place.client.is_open:
                await place.client.close()
                place.client = None
            if place.client is None:
                place.client = await self._connect(app)
            return place.client

    async def _connect(self, app: Identity) -> AsyncClient:
        """As the app of its token, as this user's own app, or on its behalf, as the operator may."""
        on_behalf_of = None if app.token or app.uid == os.geteuid() else app.uid
        return await AsyncClient.connect(
            self._socket,
            app=app.app,
            token=app.token,
            timeout=self._connect_s,
            daemon_uid=self._daemon_uid,
            admin=on_behalf_of is not None,
            on_behalf_of=on_behalf_of,
            model=self._model,
        )

    def _drop(self, app: Identity) -> None:
        place = self._places.pop(app, None)
        if place is None:
            return
        if place.idle is not None:
            place.idle.cancel()
        if place.client is not None:
            task = asyncio.ensure_future(place.client.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
