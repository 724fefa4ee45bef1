"""Passes bytes on between a connection and its channel on the line.

Law: when either end is over, both are; what had come from the line by then is passed on first. Whoever does not read
for ``UNREAD_S`` is dropped, and so is who does not read the last bytes of a connection that is over for
``_CLOSING_S``: nobody can hold a channel or a socket that the daemon has ended.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from llmaas.vm.line import LineChannel
from llmaas.vm.line_frames import MOST_BYTES

UNREAD_S, _CLOSING_S = 30.0, 1.0


async def relay(
    channel: LineChannel,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    first: bytes = b"",
    unread_s: float = UNREAD_S,
) -> None:
    """Return when the connection and the channel are over. ``first``: what was read of the connection before."""
    up = asyncio.ensure_future(_pass_up(reader, channel, first))
    try:
        while data := await channel.receive():
            writer.write(data)
            if writer.transport.get_write_buffer_size():
                await asyncio.wait_for(writer.drain(), unread_s)
    except (OSError, asyncio.TimeoutError):
        writer.transport.abort()
    finally:
        up.cancel()
        channel.close()
        close_soon(writer)
        with suppress(asyncio.CancelledError):
            await up


def close_soon(writer: asyncio.StreamWriter) -> None:
    """Close it when the peer has read what was written, or does not."""
    writer.close()
    asyncio.get_running_loop().call_later(_CLOSING_S, writer.transport.abort)


async def _pass_up(reader: asyncio.StreamReader, channel: LineChannel, first: bytes) -> None:
    try:
        await channel.send(first)
        while data := await reader.read(MOST_BYTES):
            await channel.send(data)
    except OSError:
        pass
    finally:
        channel.close()
