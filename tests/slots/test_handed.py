"""Slots of connections that another process has accepted, and keeps a copy of the socket of."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from llmaas.api.caller import Door
from llmaas.api.client_session import Session
from llmaas.api.handed import ConnectionMark, ConnectionMarks, HandedConnection, Mark, marks_memory
from llmaas.api.hello import hello_frame
from llmaas.api.server import serve_handed
from llmaas.api.slot_link import grant_of, granted_end
from llmaas.api.wire import encode
from llmaas.errors import ShuttingDown
from llmaas.slots.grants import SlotSettings
from tests.slots.support import wait_readable
from tests.support.loop import on_a_loop
from tests.support.scripted import ScriptedBackend


@on_a_loop
async def test_a_model_that_leaves_ends_its_slots_and_nobody_goes_on_with_their_sockets() -> None:
    loop = asyncio.get_running_loop()
    fd = marks_memory()
    marks = ConnectionMarks(fd)
    os.close(fd)
    gone: list[int] = []
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    server = serve_handed(ScriptedBackend(), slots=SlotSettings(2, 16 << 10))
    hello = encode(hello_frame("mail", "raw"))[4:]
    mark = ConnectionMark(marks, 3, lambda: gone.append(3))
    await server.adopt(HandedConnection(Door.APPS, theirs, hello, greet=True, mark=mark))
    session = Session("mail")
    session.receive(await loop.sock_recv(ours, 4096))
    exchange, data = grant_of(session)
    await loop.sock_sendall(ours, b"".join(data))
    while not exchange.ended:
        await asyncio.sleep(0.01)
        try:
            data, fds, _, _ = socket.recv_fds(ours, 4096, 2)
        except BlockingIOError:
            continue
        session.receive(data)
    end = granted_end(exchange, fds)
    (connection,) = server.connections
    connection.settle_mark()
    assert marks[3] is Mark.MID_FRAME, "nobody else may go on with it, whatever runs"

    assert server.detach_all() == []
    assert wait_readable(end) == 1
    session.receive(bytes(end.read()))
    assert isinstance(session.fault, ShuttingDown)
    ours.close()
    with pytest.raises(ShuttingDown):
        grant_of(session)
    await server.close()
    assert gone == [3]
    end.close()
    marks.close()
