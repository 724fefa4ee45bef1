"""Server-sent events: a stream whose response begins with its first event, and which says that it lives.

Law: each event is sent at once. A failure before the first event is a response with its own status; a later one is an
event, and ends the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from types import TracebackType

import msgspec

from llmaas.http.begun import begun
from llmaas.http.call import HttpCall

KEEP_ALIVE_S = 2.0
"""Seconds of silence after which a comment is sent: proxies and clients give up on a silent stream."""
KIND = b"text/event-stream; charset=utf-8"
_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class EventStream:
    """Writes events; to be used by ``async with``."""

    def __init__(self, call: HttpCall) -> None:
        self._call = call
        self._silent = True
        self._ticker: asyncio.Task[None] | None = None

    async def send(self, value: object, event: str = "") -> None:
        """An event with ``value`` as JSON; ``event`` names its type, where the API has types."""
        named = b"event: %s\n" % event.encode() if event else b""
        await self._write(b"%sdata: %s\n\n" % (named, msgspec.json.encode(value)))

    def send_now(self, values: Sequence[object]) -> Awaitable[None] | None:
        """Events with ``values`` as JSON, by one write. None if that is done; else the client reads too slowly, and
        what is returned must be awaited."""
        return begun(self._write(b"".join([b"data: %s\n\n" % msgspec.json.encode(value) for value in values])))

    async def send_text(self, text: bytes) -> None:
        """An event whose data is no JSON."""
        await self._write(b"data: %s\n\n" % text)

    async def _write(self, data: bytes) -> None:
        self._silent = False
        if not self._call.started:
            await self._call.start(200, KIND, *_HEADERS)
        await self._call.write(data)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            if self._silent:
                await self._write(b": keep-alive\n\n")
            self._silent = True

    async def __aenter__(self) -> EventStream:
        self._ticker = asyncio.ensure_future(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._ticker is not None
        self._ticker.cancel()
        with suppress(asyncio.CancelledError):
            await self._ticker
        if error is None:
            await self._call.end()
