"""Two ends of a line between host and guest, over a socket pair in place of a virtual machine's serial port."""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llmaas.api.peer import peer_uid
from llmaas.vm.guest_side import GuestSide
from llmaas.vm.host_side import HostSide
from llmaas.vm.line import Line, LineChannel
from llmaas.vm.line_frames import LineBroken


@asynccontextmanager
async def lines(
    on_open: Callable[[LineChannel], None],
    on_note: Callable[[Mapping[str, Any]], None] = lambda note: None,
    *,
    until_end: bool = True,
) -> AsyncIterator[tuple[Line, Line]]:
    """The host's line and the guest's; ``until_end``: both must end because the block does, and not before."""
    ends = sockets.socketpair()
    host = Line(*await asyncio.open_unix_connection(sock=ends[0]), on_note=on_note)
    guest = Line(*await asyncio.open_unix_connection(sock=ends[1]), on_note=on_note, on_open=on_open)
    running = [asyncio.ensure_future(line.run()) for line in (host, guest)]
    try:
        yield host, guest
        assert not until_end or not any(each.done() for each in running), [
            each.exception() for each in running if each.done()
        ]
    finally:
        host.end()
        guest.end()
        results = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 20)
    assert all(isinstance(each, LineBroken) for each in results), results


@asynccontextmanager
async def served_through(
    daemon: Path,
    socket: Path,
    uid_of: Callable[[sockets.socket], int] = peer_uid,
    *,
    until_end: bool = True,
    **options: Any,
) -> AsyncIterator[Line]:
    """The daemon at the socket ``daemon``, as if it were in a guest, served at ``socket``; the guest's line."""
    guest_side = GuestSide(daemon)
    async with lines(guest_side.open, until_end=until_end) as (host, guest):
        side = HostSide(host, socket, uid_of=uid_of, **options)
        side.start()
        try:
            yield guest
        finally:
            await side.close()
            await guest_side.close()
