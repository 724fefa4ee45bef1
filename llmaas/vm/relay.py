"""Passes bytes on between a connection and its channel on the line.

Law: when either end is over, both are; what had come from the line by then is passed on first. Whoever does not read
for ``UNREAD_S`` is dropped, and so is who does not read the last bytes of a connection that is over for
``_CLOSING_S``: nobody can hold a channel or a socket that the daemon has ended.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

from llmaas.vm.line import LineChannel
from llmaas.vm.line_frames import MOST_BYTES
from llmaas.vm.slot_tap import SlotTap

UNREAD_S, _CLOSING_S = 30.0, 1.0


async def relay(
    channel: LineChannel,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    first: bytes = b"",
    unread_s: float = UNREAD_S,
    tap: SlotTap | None = None,
) -> None:
    """Return when the connection and the channel are over. ``first``: what was read of the connection before; ``tap``:
    what watches it, and may pass a descriptor to it."""
    tap = tap or SlotTap(())
    up = asyncio.ensure_future(_pass_up(reader, channel, first, tap))
    try:
        while data := await channel.receive():
            for part, fd in tap.down(data):
                if fd is None:
                    writer.write(part)
                else:
                    await asyncio.wait_for(_pass_descriptor(writer, part, fd), unread_s)
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


async def _pass_descriptor(writer: asyncio.StreamWriter, data: bytes, fd: int) -> None:
    """With all of ``data``, after all that was written before. Raises OSError."""
    transport = writer.transport
    transport.set_write_buffer_limits(high=0)
    await writer.drain()
    transport.set_write_buffer_limits()
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        sent = socket.send_fds(sock, [data], [fd])
    writer.write(data[sent:])


async def _pass_up(reader: asyncio.StreamReader, channel: LineChannel, first: bytes, tap: SlotTap) -> None:
    try:
        await channel.send(first)
        await channel.send(await tap.first_request(reader))
        while data := await reader.read(MOST_BYTES):
            await channel.send(data)
    except OSError:
        pass
    finally:
        channel.close()
