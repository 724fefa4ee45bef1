"""Passes bytes on between a connection and its channel on the line.

Law: when either end is over, both are; what had come from the line by then is passed on first. Whoever does not read
for ``_UNREAD_S`` is dropped, so that nobody can hold a channel that the daemon has ended.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from llmaas.vm.line import LineChannel
from llmaas.vm.line_frames import MOST_BYTES

_UNREAD_S = 30.0


async def relay(
    channel: LineChannel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = b""
) -> None:
    """Return when the connection and the channel are over. ``first``: what was read of the connection before."""
    up = asyncio.ensure_future(_pass_up(reader, channel, first))
    try:
        while data := await channel.receive():
            writer.write(data)
            await asyncio.wait_for(writer.drain(), _UNREAD_S)
    except (OSError, asyncio.TimeoutError):
        writer.transport.abort()
    finally:
        up.cancel()
        channel.close()
        writer.close()
        with suppress(asyncio.CancelledError):
            await up


async def _pass_up(reader: asyncio.StreamReader, channel: LineChannel, first: bytes) -> None:
    try:
        await channel.send(first)
        while data := await reader.read(MOST_BYTES):
            await channel.send(data)
    except OSError:
        pass
    finally:
        channel.close()
