"""The slot of an asynchronous client: its link goes on by shared memory.

Law: the reply with the slot's descriptor is received by itself, while the socket's transport reads nothing: asyncio's
transports drop descriptors.
"""

from __future__ import annotations

import asyncio
import os
import socket

from llmaas.api.async_link import AsyncLink
from llmaas.api.client_session import Exchange, Session
from llmaas.api.slot_link import grant_of, granted_end
from llmaas.errors import NotServing
from llmaas.slots.awake import AwakeSlots
from llmaas.slots.transport import SlotTransport

_READ = 4096


async def move_to_slot(session: Session, link: AsyncLink) -> None:
    """Ask for a slot on a link that has been greeted and has no requests. Raises what the daemon refuses with,
    NotServing, MachineError: then the link is to be closed."""
    transport = link.transport
    transport.pause_reading()
    exchange, data = grant_of(session)
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        sock.setblocking(False)
        transport.writelines(data)
        fds = await _descriptors(sock, session, exchange)
    end = granted_end(exchange, fds)
    link.transport = SlotTransport(end, transport, link, AwakeSlots())
    transport.resume_reading()


async def _descriptors(sock: socket.socket, session: Session, exchange: Exchange) -> list[int]:
    """What comes with the reply."""
    found: list[int] = []
    try:
        while not exchange.ended:
            await _readable(sock)
            data, fds, _, _ = socket.recv_fds(sock, _READ, 2, socket.MSG_CMSG_CLOEXEC)
            found += fds
            if data:
                session.receive(data)
            else:
                session.lose(NotServing("the daemon has hung up"))
    except BaseException:
        for fd in found:
            os.close(fd)
        raise
    return found


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
