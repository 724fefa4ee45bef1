"""The guest's end of the line: a connection to the daemon for each channel that the host opens.

Law: it reads nothing of what it passes on. The daemon's connections are as many as the line has channels; a daemon that
takes no connection ends the channel, and no more. Of connections at the operator's door, by which apps come too, few
are without an answer to their hello at once: the daemon drops the oldest of many.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from llmaas.api.daemon_address import admin_socket
from llmaas.vm.line import LineChannel
from llmaas.vm.line_frames import MOST_BYTES
from llmaas.vm.relay import relay

log = logging.getLogger(__name__)

_GREETED_AT_ONCE = 8


class GuestSide:
    """``open`` is what a ``Line`` calls for a channel that was opened."""

    def __init__(self, socket_path: Path) -> None:
        self._doors = {"apps": socket_path, "admin": admin_socket(socket_path)}
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting = asyncio.Semaphore(_GREETED_AT_ONCE)

    def open(self, channel: LineChannel) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, channel: LineChannel) -> None:
        try:
            async with self._greeting:
                reader, writer = await asyncio.open_unix_connection(str(self._doors[channel.door]))
                answer = await _greeted(channel, reader, writer)
        except OSError as error:
            log.warning("a connection to the daemon has come to nothing: %s", error)
            channel.close()
            return
        await relay(channel, reader, writer, answer)


async def _greeted(channel: LineChannel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The daemon's answer to the hello."""
    try:
        hello = await channel.receive()
        if not hello:
            raise ConnectionResetError("the client has gone")
        writer.write(hello)
        return await reader.read(MOST_BYTES)
    except BaseException:
        writer.close()
        raise
