"""A relay between a client and a daemon, which passes bytes on as the test wants: in small pieces, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Relay:
    """``target`` opens a connection to the daemon. The rest may be changed while it runs."""

    target: Callable[[], Awaitable[Streams]]
    step: int = 1 << 16
    """Most bytes that are passed on to the client at once."""
    cut_after: int | None = None
    """After so many bytes more to clients a connection is cut, one of them; None: none is."""
    n_cut: int = 0
    n_passed: int = 0
    """Bytes that clients were sent."""
    listener: Callable[[], Awaitable[asyncio.Server]] | None = None
    _server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Let clients connect (again)."""
        assert self.listener is not None and self._server is None
        self._server = await self.listener()

    def refuse(self) -> None:
        """Let no more clients connect, as if nobody listened."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes until one of the two sides has ended; then both end."""
        with suppress(OSError):
            from_daemon, to_daemon = await self.target()
            ways = [
                asyncio.ensure_future(_up(reader, to_daemon)),
                asyncio.ensure_future(self._down(from_daemon, writer)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_daemon.transport.abort()
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            while data:
                part, data = data[: self.step], data[self.step :]
                if self.cut_after is not None:
                    self.cut_after -= len(part)
                    if self.cut_after <= 0:
                        self.cut_after, self.n_cut = None, self.n_cut + 1
                        writer.transport.abort()
                        return
                writer.write(part)
                self.n_passed += len(part)
                await writer.drain()
                if self.step < 100:
                    await asyncio.sleep(0)


async def _up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def unix_relay(target: Callable[[], Awaitable[Streams]], path: Path) -> Relay:
    """A relay that will listen at ``path``."""
    relay = Relay(target)

    async def listen() -> asyncio.Server:
        path.unlink(missing_ok=True)
        return await asyncio.start_unix_server(relay.serve, path)

    relay.listener = listen
    return relay


def tcp_relay(target: Callable[[], Awaitable[Streams]], port: int) -> Relay:
    """A relay that will listen on this port of 127.0.0.1."""
    relay = Relay(target)
    relay.listener = lambda: asyncio.start_server(relay.serve, "127.0.0.1", port)
    return relay
