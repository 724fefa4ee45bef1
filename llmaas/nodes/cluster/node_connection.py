"""A connection of the entry to the daemon of one node, for one client.

Law: bytes of the daemon are bounded before they are read; whatever is waited for has an end, but for answers, which may
take as long as the client waits. A piece is passed on before the next frame is read, so that a client that reads slowly
slows down its own answers and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from llmaas.api.replies import error_from
from llmaas.api.wire import MAX_FRAME, Frame, encode
from llmaas.errors import LlmaasError, MalformedFrame, NodeUnreachable
from llmaas.nodes.link import end_tasks, read_frame
from llmaas.nodes.tls import Streams

_HELLO_S = 15.0
_SEND_S = 60.0


async def _nobody(frame: Frame) -> None:
    return None


@dataclass(slots=True)
class _Asked:
    piece: Callable[[Frame], Awaitable[None]]
    reply: asyncio.Future[Frame] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class NodeConnection:
    """Made by ``open``. ``greeting``: the daemon's hello."""

    def __init__(self, node: str, streams: Streams, greeting: Frame) -> None:
        self.node, self.greeting = node, greeting
        self._reader, self._writer = streams
        self._asked: dict[int, _Asked] = {}
        self._last = 0
        self._lost: LlmaasError | None = None
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def open(cls, node: str, opening: Coroutine[Any, Any, Streams], hello: Frame) -> NodeConnection:
        """Raises what the daemon refuses with, what ``opening`` does, and NodeUnreachable."""
        try:
            reader, writer = await asyncio.wait_for(opening, _HELLO_S)
        except asyncio.TimeoutError:
            raise NodeUnreachable(f"the node {node} does not answer within {_HELLO_S:g} s") from None
        except OSError as error:
            raise NodeUnreachable(f"the node {node} cannot be reached: {error.strerror or error}") from error
        try:
            writer.write(encode(hello))
            greeting = await asyncio.wait_for(read_frame(reader, MAX_FRAME), _HELLO_S)
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, (OSError, EOFError, asyncio.TimeoutError)):
                raise NodeUnreachable(f"the node {node} does not answer a hello") from error
            raise
        if greeting.get("type") != "hello":
            writer.transport.abort()
            raise _said(node, greeting)
        return cls(node, (reader, writer), greeting)

    @property
    def is_open(self) -> bool:
        return self._lost is None

    async def ask(self, frame: Frame, piece: Callable[[Frame], Awaitable[None]] = _nobody) -> Frame:
        """The reply that ends a request, ``done`` or ``failed``; ``piece`` gets what comes before. The ``id`` in the
        frame is this side's business. Raises NodeUnreachable if the connection is lost. Cancelled, it cancels the
        request there."""
        number, asked = self.begin(frame, piece)
        try:
            await self._flush()
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            if not asked.done() and self.is_open:
                self.begin({"op": "cancel", "request": number}, _nobody)
            raise

    def begin(self, frame: Frame, piece: Callable[[Frame], Awaitable[None]]) -> tuple[int, asyncio.Future[Frame]]:
        """Send a request now: its number here, and its last reply. Raises NodeUnreachable."""
        if self._lost is not None:
            raise self._lost
        self._last += 1
        asked = self._asked[self._last] = _Asked(piece)
        self._writer.write(encode({**frame, "id": self._last}))
        return self._last, asked.reply

    async def _flush(self) -> None:
        try:
            await asyncio.wait_for(self._writer.drain(), _SEND_S)
        except (OSError, asyncio.TimeoutError):
            self._writer.transport.abort()

    async def close(self) -> None:
        self.abort()
        await end_tasks([self._reading])

    def abort(self) -> None:
        """As ``close``, for whoever cannot wait."""
        self._end(NodeUnreachable(f"the connection to the node {self.node} was closed"))
        self._reading.cancel()

    async def _read(self) -> None:
        why = f"the connection to the node {self.node} was lost"
        try:
            while True:
                await self._take(await read_frame(self._reader, MAX_FRAME))
        except (OSError, EOFError):
            self._end(NodeUnreachable(why))
        except LlmaasError as error:
            self._end(NodeUnreachable(f"{why}: {error.message}"))

    async def _take(self, frame: Frame) -> None:
        number = frame.get("id")
        if number is None and frame.get("type") == "failed":
            raise _said(self.node, frame)
        asked = self._asked.get(number) if isinstance(number, int) else None
        if asked is None:
            return
        if frame.get("type") == "piece":
            await asked.piece(frame)
            return
        del self._asked[int(str(number))]
        if not asked.reply.done():
            asked.reply.set_result(frame)

    def _end(self, error: LlmaasError) -> None:
        if self._lost is not None:
            return
        self._lost = error
        self._writer.transport.abort()
        for asked in self._asked.values():
            if not asked.reply.done():
                asked.reply.set_exception(error)
                asked.reply.exception()  # nobody may wait for it any more
        self._asked.clear()


def _said(node: str, frame: Frame) -> LlmaasError:
    if frame.get("type") != "failed":
        return MalformedFrame(f"what answers as the node {node} does not speak llmaas's protocol")
    error = error_from(frame)
    error.message = f"node {node}: {error.message}"
    return error
