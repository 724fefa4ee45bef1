"""A connection between two nodes: frames over TLS, a request and its reply at a time.

Law: a frame is bounded before it is read, and everything that is waited for has an end. Either side may be hostile:
what a frame holds is for whoever asked, or answers, to judge.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from typing import Any

from llmaas.api.wire import Frame, encode, read_body
from llmaas.errors import BadRequest, FrameTooLarge, LlmaasError, MachineError, NodeUnreachable, NotTrusted, by_code
from llmaas.nodes.dialing import CONNECT_S, dialed, why_lost
from llmaas.nodes.identity import NodeIdentity
from llmaas.nodes.pinned import PinnedNode
from llmaas.nodes.tls import shown_certificate

VERSION = 1
"""Of what nodes say to each other."""
MAX_FRAME = 16 << 20
"""Bytes: a message's text and its tokens are in one frame."""
MOST_VALUES = 1 << 15
"""Of a frame, at all levels together."""
REPLY_S = 60.0
"""The peer stores what it was sent meanwhile, on a slow disk perhaps."""
_LENGTH = struct.Struct(">I")


async def read_frame(reader: asyncio.StreamReader, most: int, most_values: int | None = None) -> Frame:
    """Raises FrameTooLarge, MalformedFrame, EOFError, OSError."""
    return read_body(await reader.readexactly(await read_size(reader, most)), most_values)


async def read_size(reader: asyncio.StreamReader, most: int) -> int:
    """Of the body that follows. Raises FrameTooLarge, EOFError, OSError."""
    size: int = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]
    if size > most:
        raise FrameTooLarge(f"a frame of {size} bytes was announced; at most {most} are allowed")
    return size


class NodeLink:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @property
    def peer_certificate(self) -> bytes | None:
        """What the peer has shown."""
        return shown_certificate(self._writer)

    async def send(self, frame: Frame, seconds: float = REPLY_S) -> None:
        """Raises OSError, asyncio.TimeoutError."""
        self._writer.write(encode(frame, max_frame=MAX_FRAME))
        await asyncio.wait_for(self._writer.drain(), seconds)

    async def receive(self, seconds: float = REPLY_S) -> Frame:
        """The next frame. Raises MalformedFrame, FrameTooLarge, OSError, EOFError, asyncio.TimeoutError."""
        return await asyncio.wait_for(self._receive(), seconds)

    async def _receive(self) -> Frame:
        return await read_frame(self._reader, MAX_FRAME, MOST_VALUES)

    async def close(self) -> None:
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), CONNECT_S)
        except (OSError, asyncio.TimeoutError):
            self._writer.transport.abort()


class NodeClient:
    """The end that asks. ``name``: of the peer."""

    def __init__(self, name: str, link: NodeLink, facts: Frame) -> None:
        self.name, self._link, self.facts = name, link, facts

    async def ask(self, op: str, **fields: Any) -> Frame:
        """Send a request, and return what is replied. Raises what the peer says is wrong, and NodeUnreachable."""
        await self.post(op, **fields)
        return await self.reply()

    async def post(self, op: str, **fields: Any) -> None:
        """Send a request; ``reply`` gives the replies, in the same order. Raises NodeUnreachable."""
        await _post(self.name, self._link, {"op": op, **fields})

    async def reply(self, seconds: float = REPLY_S) -> Frame:
        return await _reply(self.name, self._link, seconds)

    async def close(self) -> None:
        await self._link.close()


async def connect_node(own: NodeIdentity, node: PinnedNode) -> NodeClient:
    """Raises NodeUnreachable, NotTrusted, MachineError, BadRequest for a node without an address."""
    if not node.address:
        raise BadRequest(
            f"the node {node.name} has no address",
            hint=f"Give it one: 'llmaas node pair {node.name} CARD --address HOST:PORT'.",
        )
    link = NodeLink(*await dialed(own, node.name, node.certificate, node.address))
    try:
        facts = await _greeted(node, link)
    except BaseException:
        await link.close()
        raise
    return NodeClient(node.name, link, facts)


async def _greeted(node: PinnedNode, link: NodeLink) -> Frame:
    """In TLS 1.3 a client that is refused has ended its handshake before, and asyncio does not show it the alert."""
    try:
        await _post(node.name, link, {"op": "hello", "version": VERSION})
        return await _reply(node.name, link)
    except NodeUnreachable as error:
        if isinstance(error.__cause__, asyncio.TimeoutError):
            raise
        raise NotTrusted(
            f"the node {node.name} has ended the connection: it does not know this one",
            hint="It must be paired with this node, too: there, 'llmaas node pair' with what 'llmaas node show' says.",
        ) from error


async def _post(name: str, link: NodeLink, request: Frame) -> None:
    try:
        await link.send(request)
    except (OSError, asyncio.TimeoutError) as error:
        raise NodeUnreachable(f"the connection to the node {name} has ended: {why_lost(error)}") from error


async def _reply(name: str, link: NodeLink, seconds: float = REPLY_S) -> Frame:
    try:
        reply = await link.receive(seconds)
    except (OSError, EOFError, asyncio.TimeoutError) as error:
        raise NodeUnreachable(f"the connection to the node {name} has ended: {why_lost(error)}") from error
    except LlmaasError as error:
        raise MachineError(f"the node {name} speaks another language: {error.message}") from error
    if (code := reply.get("error")) is not None:
        kind = by_code().get(str(code)[:64], MachineError)
        raise kind(f"node {name}: {str(reply.get('message'))[:500]}", hint=str(reply.get("hint"))[:500])
    return reply


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Return when they have ended. ``asyncio.wait_for`` of Python 3.11 and older may swallow a cancellation that comes
    as what it waits for is done: they are cancelled until they end."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.5)
