"""A lock that apps hold in turn.

Law: one holder at a time; among apps that wait, each gets one turn before any gets a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmaas.fair_queue import FairQueue
from llmaas.records import AppId


class FairTurns:
    """For one event loop."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = FairQueue[asyncio.Future[None]]()

    @asynccontextmanager
    async def turn(self, app: AppId) -> AsyncIterator[None]:
        """The app's turn, for as long as the block takes."""
        await self._acquire(app)
        try:
            yield
        finally:
            self._pass_on()

    async def _acquire(self, app: AppId) -> None:
        if not self._held:
            self._held = True
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.add(app, place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was this one's turn already
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            place = self._waiting.pop()
            if not place.done():
                place.set_result(None)
                return
        self._held = False
