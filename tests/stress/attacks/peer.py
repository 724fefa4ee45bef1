"""What attacks are made of: raw connections that may say anything, or nothing."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from llmaas.api.daemon_address import admin_socket
from llmaas.api.wire import Decoder, Frame

MANY = 1 << 22
"""Bytes of the largest frame."""


def frame(fields: Frame) -> bytes:
    """The bytes of a frame, whatever is in it."""
    body: bytes = msgpack.packb(fields)
    return framed(body)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


class Peer:
    """A connection. What is sent is not waited for unless it says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder, self._frames = Decoder(), list[Frame]()
        self._ids = itertools.count(1)

    async def send(self, data: bytes) -> None:
        """Returns when the daemon has taken (nearly) all of it."""
        self.writer.write(data)
        await self.writer.drain()

    async def request(self, op: str, **fields: Any) -> int:
        """Send a request; its id."""
        id = next(self._ids)
        await self.send(frame({"id": id, "op": op, **fields}))
        return id

    async def receive(self) -> Frame:
        """The next frame. Raises ConnectionError at the end."""
        while not self._frames:
            data = await self.reader.read(1 << 16)
            if not data:
                raise ConnectionError("the daemon hung up")
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    async def ended(self, request: int | None = None) -> Frame:
        """The terminal reply of a request, or of any. Other frames are dropped."""
        while True:
            reply = await self.receive()
            if reply.get("type") in ("done", "failed") and (request is None or reply.get("id") == request):
                return reply

    async def ask(self, op: str, **fields: Any) -> Frame:
        """A request and its terminal reply."""
        return await self.ended(await self.request(op, **fields))

    def close(self) -> None:
        self.writer.transport.abort()

    def deafen(self) -> None:
        """Read no more."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]


@dataclass
class Attacker:
    """Connects to the daemon under attack. ``scratch``: a directory for its files. ``begin`` says that it begins."""

    socket: Path
    scratch: Path
    begin: Callable[[], None]
    peers: list[Peer] = field(default_factory=list)

    async def connect(self, app: str | None = "mallory", *, admin: bool = False) -> Peer:
        """A new connection that has said hello as ``app``; None: it says nothing. Raises ConnectionError."""
        path = admin_socket(self.socket) if admin else self.socket
        peer = Peer(*await asyncio.open_unix_connection(str(path)))
        self.peers.append(peer)
        if app is not None:
            await peer.send(frame({"op": "hello", "version": 1, "app": app}))
            if (await peer.receive()).get("type") != "hello":
                raise ConnectionError("refused")
        return peer

    async def connect_many(self, n: int, apps: int = 1) -> list[Peer]:
        """As many connections as the daemon allows, ``n`` at most, under so many names. Raises ConnectionError if it
        allows none."""
        found = [self.connect(f"mallory-{i % apps}") for i in range(n)]
        groups = [await asyncio.gather(*found[i : i + 16], return_exceptions=True) for i in range(0, n, 16)]
        peers = [peer for group in groups for peer in group if isinstance(peer, Peer)]
        if not peers:
            raise ConnectionError("all were refused")
        return peers

    def drop_all(self) -> None:
        for peer in self.peers:
            peer.close()
        self.peers.clear()


async def context(peer: Peer, text: str = "", **fields: Any) -> str:
    """A new context of the peer's app, with so much raw text in it; its id."""
    reply = await peer.ask("create", **fields)
    if reply["type"] != "done":
        raise ConnectionError(str(reply))
    made = reply["result"]["id"]
    if text:
        await peer.ask("append", context=made, prompt=text)
    return str(made)
